"""How near decoding comes to what the memory allows: a step must read the language model's
weights, and every key and value, once, so its time is at least their bytes over the bandwidth.

In: a `Setting` and the seconds of a rollout. Out: `Decode`.
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ivgr.models.registry import find_family
from ivgr.packing.prefix_tree import tree_length
from ivgr.rollout.room import token_bytes
from ivgr.tools.bench.bench_setting import Setting, build_queries
from ivgr.tools.bench.hardware_limits import copy_bandwidth

LARGE = 2**28  # bytes: beyond every cache
COPIES = 20


@dataclass(frozen=True)
class Decode:
    """tokens_per_second: of all branches together, prefill left out; ceiling_tokens_per_second:
    the most that bandwidth allows; weight_bytes and cache_bytes: read at a step, on average;
    copy_bytes_per_second: read and written by a large copy on this device."""

    tokens_per_second: float
    ceiling_tokens_per_second: float
    weight_bytes: int
    cache_bytes: int
    copy_bytes_per_second: float


def decode_figures(setting: Setting, policy: PreTrainedModel, seconds: float) -> Decode:
    """`seconds` that all tokens but each response's first took (that one is the prefill's)."""
    branches = setting.queries * 2 * setting.group_size
    weights, cache = weight_bytes(policy), cache_bytes(setting, policy, branches)
    large = torch.zeros(LARGE, dtype=torch.uint8, device=policy.device)
    bandwidth = copy_bandwidth(large, COPIES)
    return Decode(
        tokens_per_second=branches * (setting.response - 1) / seconds,
        ceiling_tokens_per_second=branches * bandwidth / (weights + cache),
        weight_bytes=weights,
        cache_bytes=cache,
        copy_bytes_per_second=bandwidth,
    )


def weight_bytes(policy: PreTrainedModel) -> int:
    """Returns the bytes of the language model's layers and head, which every token passes through."""
    modules = (*find_family(policy.config.model_type).decoder_layers(policy), policy.lm_head)
    return sum(weight.nbytes for module in modules for weight in module.parameters())


def cache_bytes(setting: Setting, policy: PreTrainedModel, branches: int) -> int:
    """Keys and values of all prompts, and of responses half grown."""
    prompts = sum(map(tree_length, build_queries(setting, policy, rollouts=False)))
    return token_bytes(policy.config, policy.dtype) * (prompts + branches * setting.response // 2)
