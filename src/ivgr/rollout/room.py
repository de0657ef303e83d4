"""How many branches decode together: as many as the free memory holds at their longest.

In: a model, its device's free memory, the prompts. Out: the size of a cache.
"""

from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ivgr.core.memory import free_bytes
from ivgr.rollout.batch_rows import Prompt
from ivgr.rollout.prefix_kv_cache import CacheSize

# Of the free memory, what the cache may take; passes and sampling need the rest.
SHARE = 0.7
# Prefixes for every query's worth of branches: where some of a prefix's branches have ended, another's
# decode in their rows.
PREFIXES = 2


def cache_size(
    model: PreTrainedModel, prompts: list[Prompt], limit: int, queries: int, branches: int | None
) -> CacheSize:
    """Room for the branches of up to `queries` prompts at their longest, `limit` tokens each, or as many as
    memory holds; and for no more than `branches`, if that is not None."""
    width = max(
        len(one.query.prefix) + sum(len(group.instruction) for group, _ in one.groups) for one in prompts
    )
    siblings = max(len(one.branches) for one in prompts)
    tokens = int(SHARE * free_bytes(model.device)) // token_bytes(model.config, model.dtype)
    together = min(queries, tokens // (PREFIXES * width + siblings * limit))
    rows = together * siblings or max(1, min(siblings, (tokens - width) // limit))
    rows = min(rows, sum(len(one.branches) for one in prompts), branches or rows)
    prefixes = min(max(1, PREFIXES * rows // siblings), len(prompts))
    return CacheSize(prefixes=prefixes, width=width, siblings=min(siblings, rows), branches=rows, limit=limit)


def token_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Returns the bytes of the keys and values that all layers keep per token."""
    text: Any = config.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * text.num_key_value_heads * size * dtype.itemsize
