"""Attention in fp32 with its log-sum-exp, and what caches of keys and values share."""

import torch

from ivgr.kernels.prefixes import Prefixes

HIDDEN = torch.finfo(torch.float32).min  # what is added to the score of a token that is not seen

KeysValues = tuple[torch.Tensor, torch.Tensor]


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(scaling·query·keysᵀ + bias)·values and the log-sum-exp (…, 1), fp32. Scores of lower
    precision would be off by whole units where keys have a large bias."""
    scores = _product(query, keys.mT, scaling) + bias
    lse = scores.logsumexp(-1, keepdim=True)
    return _product((scores - lse).exp().to(values.dtype), values), lse


def attend_prefixes(
    query: torch.Tensor, prefixes: Prefixes, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the attention of query (R, H, G, D) over the branches' prefixes, of the same shape, and its
    log-sum-exp (R, H, G, 1)."""
    _, heads, group, size = query.shape
    count, siblings = prefixes.table.shape
    tabled = query[prefixes.table].transpose(1, 2).reshape(count, heads, siblings * group, size)
    bias = prefixes.bias.repeat_interleave(group, 1)[:, None]
    found, lse = attend(tabled, prefixes.keys, prefixes.values, bias, scaling)
    found = found.view(count, heads, siblings, group, size)[prefixes.prefix_of, :, prefixes.column]
    return found, lse.view(count, heads, siblings, group, 1)[prefixes.prefix_of, :, prefixes.column]


def _product(left: torch.Tensor, right: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """scale·left (B, H, M, K)·right (B, H, K, N), fp32. On a GPU operands of lower precision go into
    the GEMM as they are, so that no fp32 copy of the cache is made."""
    if left.is_cuda and left.dtype != torch.float32:
        found = torch.bmm(left.flatten(0, 1), right.flatten(0, 1), out_dtype=torch.float32)
        found = found.unflatten(0, left.shape[:2])
        return found if scale is None else found.mul_(scale)
    left = left.float() if scale is None else left.float() * scale
    return left @ right.float()


def widen(part: torch.Tensor, length: int) -> torch.Tensor:
    """`part` (B, H, T, D) with zeros behind it, `length` tokens in all."""
    widened = part.new_zeros(*part.shape[:2], length, part.shape[3])
    widened[:, :, : part.shape[2]] = part
    return widened
