"""Sampling from a nucleus as its definition says it, by a full sort."""

import torch


def by_full_sort(
    probability: torch.Tensor, draw: torch.Tensor, top_p: float
) -> tuple[list[int], list[float]]:
    """For each row, the token whose share of the nucleus, likeliest first, holds `draw`, and the nucleus'
    total. Tokens that are as likely as each other are in order."""
    tokens, totals = [], []
    for row, point in zip(probability.double(), draw.tolist(), strict=True):
        falling, order = row.sort(descending=True, stable=True)
        kept = falling[(falling.cumsum(0) - falling) < top_p]
        inside = (kept.cumsum(0) / kept.sum() > point).nonzero()
        tokens.append(int(order[inside[0, 0] if len(inside) else len(kept) - 1]))
        totals.append(float(kept.sum()))
    return tokens, totals
