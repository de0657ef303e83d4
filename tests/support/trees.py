"""Log-probs and gradients of a packed tree, and the cache that its prefill leaves."""

import torch

from ivgr.packing.prefix_tree import Pack, pack_queries
from ivgr.rollout.prefix_kv_cache import CacheSize, TreeCache


def tree_logps(model, queries, budget, **layout):
    parts = []
    for pack in pack_queries(model, queries, budget, **layout):
        logp = model.lm_head(pack.response_hidden(model)).log_softmax(-1)
        parts.append(logp.gather(1, pack.targets[:, None])[:, 0])
    return torch.cat(parts)


def gradients(model, logps):
    model.zero_grad()
    weights = torch.linspace(-1, 1, len(logps), device=logps.device)
    (logps * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def prefilled(model, pack: Pack, siblings: int = 2, limit: int = 8) -> TreeCache:
    """The cache after the prefill of `pack`, with room for `siblings` branches of each of its prompts."""
    rows, width = pack.ids.shape
    size = CacheSize(
        layers=model.config.get_text_config().num_hidden_layers,
        prefixes=rows,
        width=width,
        siblings=siblings,
        branches=rows * siblings,
        limit=limit,
        tokens=rows * siblings * limit,
    )
    cache = TreeCache(size, pack.ids.device)
    cache.begin_prefill(list(range(rows)))
    with torch.no_grad():
        pack.hidden(model, tree_cache=cache)
    cache.end_prefill()
    return cache
