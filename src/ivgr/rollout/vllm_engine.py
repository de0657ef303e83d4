"""Rollouts by vLLM, in the trainer's own process and on its GPU.

In: queries; their images are processed once more, by vLLM. Out: rollouts as from
`TransformersEngine`. Between two calls the engine sleeps and its memory is the trainer's; when
it wakes it takes the policy's weights, in memory.
"""

import os
from contextlib import AbstractContextManager
from functools import partial
from types import ModuleType
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ivgr.core.errors import UserError, install_hint
from ivgr.core.query import Query, global_indices
from ivgr.core.seeding import derive_seed
from ivgr.core.settings import Dtype, PositiveInt, PositiveShare, checked
from ivgr.models.family_fields import INTERLEAVED
from ivgr.models.forward import banned_ids, stop_ids
from ivgr.models.model_directory import read_config
from ivgr.models.registry import find_family
from ivgr.rollout.sampling import SamplingConfig
from ivgr.rollout.vllm_loader import keep_buffers
from ivgr.rollout.vllm_requests import check_expansion, make_prompt, read_completion
from ivgr.rollout.vllm_sleep import SleepingEngine
from ivgr.rollout.vllm_weights import load_weights, load_weights_checked

# What rollouts or weights rely on, and so no option.
FIXED = {
    "dtype", "enable_sleep_mode", "gpu_memory_utilization", "hf_overrides", "load_format", "logprobs_mode",
    "max_model_len", "model", "pipeline_parallel_size", "quantization", "tensor_parallel_size",
}  # fmt: skip


@checked("model.engine.")
class VLLMEngine:
    """Rollouts by a colocated vLLM, one whole copy of the policy a process.

    It samples at temperature 1 only: vLLM reports either log-probs of the full vocabulary before
    temperature, bans and top-p, which at 1 are `Rollout.logp`, or those after all three. The
    first are taken; sampling_logp of sampled rollouts is NaN. Tokens are drawn from a seed for
    each rollout, yet a GPU's sums depend on what is decoded together, so that runs are alike but
    not identical.

    Args:
        sampling: Group size, temperature, which must be 1, nucleus, response length.
        max_prompt_tokens: Longest prompt, images included; as model.encoding.max_prompt_tokens.
        batch_queries: Queries handed over at once, whose processed images lie in host memory.
        gpu_memory_utilization: Share of the GPU for vLLM's weights and cache while it is awake.
        sleep_level: 2 forgets the weights in sleep, 1 keeps a copy in host memory.
        checkpoint: Directory or hub id of configuration, tokenizer and processor; null takes what
            the policy was loaded from.
        dtype: Weight dtype inside vLLM; null takes the policy's.
        options: Further arguments of `vllm.LLM`, such as enforce_eager or max_num_seqs.
    """

    def __init__(
        self,
        sampling: SamplingConfig = SamplingConfig(),
        max_prompt_tokens: PositiveInt = 8192,
        batch_queries: PositiveInt = 64,
        gpu_memory_utilization: PositiveShare = 0.4,
        sleep_level: Literal[1, 2] = 2,
        checkpoint: str | None = None,
        dtype: Dtype | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        if sampling.temperature != 1:
            raise UserError(
                f"model.engine.sampling.temperature is {sampling.temperature}: vLLM gives full-vocabulary "
                "log-probs at 1 only; set it to 1.0 or use TransformersEngine"
            )
        if taken := sorted(FIXED & (options or {}).keys()):
            raise UserError(f"model.engine.options: {taken[0]} is not free to choose here; remove it")
        self.sampling = sampling
        self.max_prompt_tokens = max_prompt_tokens
        self.batch_queries = batch_queries
        self.gpu_memory_utilization = gpu_memory_utilization
        self.sleep_level = sleep_level
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.options = options or {}
        self.engine: SleepingEngine | None = None
        self.checked = False

    def roll_out(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: list[Query], seed: int
    ) -> None:
        """Appends group_size sampled rollouts to each group; UserError for a prompt that is too
        long, images that vLLM reads otherwise, or weights that it does not take."""
        placed = zip(global_indices(queries), queries, strict=True)
        seeds: list[int | None] = [
            derive_seed(seed, place, n) for place, query in placed for n in range(len(query.groups))
        ]
        config = self.sampling
        self._respond(
            model, tokenizer, queries, seeds, n=config.group_size, temperature=1.0, top_p=config.top_p
        )

    def answer(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: list[Query]
    ) -> None:
        """Appends one greedy rollout to each group; errors as of `roll_out`."""
        seeds: list[int | None] = [None] * sum(len(query.groups) for query in queries)
        self._respond(model, tokenizer, queries, seeds, n=1, temperature=0.0)

    def _respond(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        queries: list[Query],
        seeds: list[int | None],
        **sampling,
    ) -> None:
        """Appends n rollouts to each group; seeds: one per group, in order."""
        if not queries:
            return
        draw, stops, greedy = iter(seeds), stop_ids(model, tokenizer), sampling["temperature"] == 0
        common = {
            **sampling,
            "max_tokens": self.sampling.max_new_tokens,
            "stop_token_ids": stops,
            "ignore_eos": True,  # no other token ends a response
            "logit_bias": dict.fromkeys(banned_ids(model), -torch.inf),
            "logprobs": 0,  # of the chosen token alone
            "flat_logprobs": True,
            "detokenize": False,
        }
        with self._awake(model) as llm:
            for start in range(0, len(queries), self.batch_queries):
                batch = queries[start : start + self.batch_queries]
                groups = [(query, group) for query in batch for group in query.groups]
                prompts = [make_prompt(model, *pair, self.max_prompt_tokens) for pair in groups]
                params = [import_vllm().SamplingParams(**common, seed=next(draw)) for _ in groups]
                outputs = llm.generate(prompts, params, use_tqdm=False)
                for (query, group), output in zip(groups, outputs, strict=True):
                    check_expansion(query, group, output.prompt_token_ids)
                    group.rollouts += [
                        read_completion(c, tokenizer, stops, greedy, group.opened) for c in output.outputs
                    ]

    def _awake(self, policy: PreTrainedModel) -> AbstractContextManager[Any]:
        """The engine, awake with the policy's weights."""
        if self.engine is None:
            self.engine = SleepingEngine(self._build(policy), self.sleep_level)
        torch.cuda.empty_cache()
        return self.engine.awake(partial(self._load, policy))

    def _load(self, policy: PreTrainedModel, model: nn.Module) -> None:
        load = load_weights if self.checked else load_weights_checked
        load(policy, model)
        self.checked = True

    def _build(self, policy: PreTrainedModel) -> Any:
        """A `vllm.LLM` without weights of its own."""
        check_device(policy.device)
        checkpoint = self.checkpoint or policy.name_or_path
        if not checkpoint:
            raise UserError(
                "model.engine: the policy does not say where it was loaded from; set model.engine.checkpoint"
            )
        if self.checkpoint:
            read_config(self.checkpoint, "model.engine.checkpoint")
        length = self.max_prompt_tokens + self.sampling.max_new_tokens
        if length > (room := policy.config.get_text_config().max_position_embeddings):
            raise UserError(
                f"model.engine: max_prompt_tokens and sampling.max_new_tokens are {length} together, "
                f"more than the {room} positions of the policy; lower one of them"
            )
        vllm = import_vllm()
        keep_buffers()
        rope = {"text_config": {"rope_parameters": {INTERLEAVED: True}}}
        return vllm.LLM(
            model=str(checkpoint),
            hf_overrides=rope if find_family(policy.config.model_type).interleaved else {},
            load_format="dummy",
            dtype=self.dtype or str(policy.dtype).removeprefix("torch."),
            max_model_len=length,
            gpu_memory_utilization=self.gpu_memory_utilization,
            enable_sleep_mode=True,
            logprobs_mode="raw_logprobs",
            **{"enable_prefix_caching": True, "limit_mm_per_prompt": {"video": 0}}
            | _launcher(policy.device)
            | self.options,
        )


def import_vllm() -> ModuleType:
    """The vllm package, told to stay in this process; UserError if it cannot be imported."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        import vllm
    except ImportError as error:
        raise UserError(f"model.engine: vllm cannot be imported ({error}); {install_hint('vllm')}") from error
    return vllm


def check_device(device: torch.device) -> None:
    """UserError unless vLLM will find the policy's device; alone, it takes the first GPU it sees."""
    if device.type != "cuda":
        raise UserError(
            f"model.engine: vLLM needs a GPU and the policy is on {device}; use TransformersEngine"
        )
    if not _several_ranks() and device.index not in (None, 0):
        raise UserError(
            f"model.engine: the policy is on {device} but vLLM takes the first GPU it sees; "
            f"run with CUDA_VISIBLE_DEVICES={device.index} and trainer.devices 1"
        )


def _several_ranks() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def _launcher(device: torch.device) -> dict[str, str]:
    """Returns the options for several ranks, each with its own engine on its own GPU within the trainer's
    process group."""
    if not _several_ranks():
        return {}
    os.environ["RANK"], os.environ["LOCAL_RANK"] = str(dist.get_rank()), str(device.index)
    return {"distributed_executor_backend": "external_launcher"}
