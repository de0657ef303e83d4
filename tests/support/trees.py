"""Log-probs and gradients of a packed tree."""

import torch

from ivgr.packing.prefix_tree import pack_queries


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
