"""How many branches decode together: as many as the free memory holds.

In: a model, its device's free memory, the prompts. Out: the size of a cache, the same on all ranks that share
the model.
"""

from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ivgr.core.memory import free_bytes
from ivgr.distributed.tensor_parallel import least_of, tp_group_of, tp_ranks
from ivgr.kernels.dispatch import uses_triton
from ivgr.rollout.batch_rows import Prompt
from ivgr.rollout.branch_kv import EXPECTED
from ivgr.rollout.prefix_kv_cache import CacheSize

# Of the free memory, what the cache may take; passes and sampling need the rest.
SHARE = 0.7
# Prefixes for every query's worth of branches: where some of a prefix's branches have ended, another's
# decode in their rows.
PREFIXES = 2


def cache_size(
    model: PreTrainedModel, prompts: list[Prompt], limit: int, queries: int, most: CacheSize | None
) -> CacheSize:
    """Room for the branches of up to `queries` prompts, as many as free memory holds at the length that is
    reckoned with, and for one of `limit` tokens at least; and for no more than `most`, if that is given."""
    width = max(
        len(one.query.prefix) + sum(len(group.instruction) for group, _ in one.groups) for one in prompts
    )
    siblings = max(len(one.branches) for one in prompts)
    least = least_of(tp_group_of(model), int(SHARE * free_bytes(model.device)), model.device)
    free = least // token_bytes(model.config, model.dtype, tp_ranks(model))
    reckoned = min(limit, EXPECTED) if uses_triton(model.device) else limit
    together = min(queries, free // (PREFIXES * width + siblings * reckoned))
    rows = together * siblings or max(1, min(siblings, (free - width) // reckoned))
    rows = min(rows, sum(len(one.branches) for one in prompts), most.branches if most else rows)
    prefixes = min(max(1, PREFIXES * rows // siblings), len(prompts))
    tokens = min(rows * limit, free - prefixes * width, most.tokens if most else rows * limit)
    text: Any = model.config.get_text_config()
    return CacheSize(
        layers=text.num_hidden_layers,
        prefixes=prefixes,
        width=width,
        siblings=min(siblings, rows),
        branches=rows,
        limit=limit,
        tokens=max(tokens, limit),
    )


def token_bytes(config: PreTrainedConfig, dtype: torch.dtype, tp_ranks: int = 1) -> int:
    """Returns the bytes of the keys and values that all layers keep per token, on one of `tp_ranks`."""
    text: Any = config.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * text.num_key_value_heads // tp_ranks * size * dtype.itemsize
