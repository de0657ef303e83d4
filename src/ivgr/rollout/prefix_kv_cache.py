"""Keys and values of a rollout, each stored once: a query's prefix and instructions in its
stem, shared by all its branches; a branch's own tokens in its suffix.

Attention over the two is computed apart and merged by log-sum-exp, so a stem is read once
for all branches of its query, and never copied. In: a layer's projections. Out: its
attention output.
"""

import torch
from torch import nn

from ivgr.models.tree_attention import attend_mask

GROWTH = 64


class TreeCache:
    """Filled by the prefill of B stems, L tokens wide; after `fork`, R branches decode.

    owner, slot (R,): a branch's stem, and its place among the branches of that stem;
    table (B, S): the branch in each slot; bias (B, S, L): 0 where the branch sees the
    stem's token, else -inf-like; written (T,): the same for suffix columns.
    """

    def __init__(self) -> None:
        self.stems: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.suffixes: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.visible = self.owner = self.length = self.written = None

    def fork(self, owner: torch.Tensor, visible: torch.Tensor, limit: int) -> None:
        """Starts R branches: owner (R,) in order, visible (R, L) bool; suffixes hold up to
        `limit` tokens."""
        self.visible, self.owner, self.limit = visible, owner, limit
        keys = self.stems[0][0]
        self.length = torch.zeros((), dtype=torch.long, device=keys.device)
        self.written = keys.new_full((0,), 0.0, dtype=torch.float32)
        empty = keys.new_empty(len(owner), keys.shape[1], 0, keys.shape[3])
        self.suffixes = [(empty, empty) for _ in self.stems]
        self._assign_slots()

    def begin_step(self, step: int) -> bool:
        """Makes room for token `step` of every branch; whether that took new tensors."""
        full = step == len(self.written)
        if full:
            capacity = min(step + GROWTH, self.limit)
            self.written = _widen(self.written, capacity, torch.finfo(torch.float32).min)
            self.suffixes = [tuple(_grow(part, capacity) for part in pair) for pair in self.suffixes]
        self.length.fill_(step)
        self.written[step] = 0.0
        return full

    def select(self, rows: torch.Tensor) -> None:
        """Keeps these branches only; stems left without a branch go too."""
        owner = self.owner[rows]
        stems, self.owner = owner.unique(return_inverse=True)
        self.visible = self.visible[rows]
        if len(stems) < len(self.stems[0][0]):
            self.stems = [(keys[stems], values[stems]) for keys, values in self.stems]
        self.suffixes = [(keys[rows], values[rows]) for keys, values in self.suffixes]
        self._assign_slots()

    def attend(self, module: nn.Module, query, key, value, mask, scaling: float) -> torch.Tensor:
        """Prefill: keeps the stem and attends under `mask`; decoding: one token a branch."""
        if self.owner is None:
            self.stems.append((key.contiguous(), value.contiguous()))
            return attend_mask(module, query, key, value, mask, scaling=scaling)
        branches, heads, _, size = query.shape
        query = query.view(branches, key.shape[1], -1, size)
        stem, stem_lse = self._attend_stem(query, *self.stems[module.layer_idx], scaling)
        keys, values = self.suffixes[module.layer_idx]
        keys.index_copy_(2, self.length[None], key)
        values.index_copy_(2, self.length[None], value)
        own, own_lse = _attend(query, keys, values, self.written, scaling)
        share = torch.sigmoid(stem_lse - own_lse)
        both = (share * stem + (1 - share) * own).to(value.dtype)
        return both.reshape(branches, 1, heads, size)

    def _attend_stem(self, query, keys, values, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Of queries (R, KV heads, G, D) over their stems: output alike, lse (R, KV, G, 1)."""
        stems, slots = self.table.shape
        _, groups, heads, size = query.shape
        seated = query[self.table].transpose(1, 2).reshape(stems, groups, slots * heads, size)
        out, lse = _attend(seated, keys, values, self.bias.repeat_interleave(heads, 1)[:, None], scaling)
        out = out.view(stems, groups, slots, heads, size)[self.owner, :, self.slot]
        return out, lse.view(stems, groups, slots, heads, 1)[self.owner, :, self.slot]

    def _assign_slots(self) -> None:
        count = torch.bincount(self.owner)
        first = count.cumsum(0) - count
        self.slot = torch.arange(len(self.owner), device=self.owner.device) - first[self.owner]
        self.table = self.owner.new_zeros(len(count), int(count.max()))
        self.table[self.owner, self.slot] = torch.arange(len(self.owner), device=self.owner.device)
        hidden = ~self.visible[self.table]
        self.bias = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(
            hidden, torch.finfo(torch.float32).min
        )


def _attend(query, keys, values, bias, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(scaling·query·keysᵀ + bias)·values and the log-sum-exp (…, 1), fp32. Scores of lower
    precision would be off by whole units where keys have a large bias."""
    scores = _product(query, keys.mT, scaling) + bias
    lse = scores.logsumexp(-1, keepdim=True)
    return _product((scores - lse).exp().to(values.dtype), values), lse


def _product(left: torch.Tensor, right: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """scale·left (B, H, M, K)·right (B, H, K, N), fp32. On a GPU operands of lower precision go into
    the GEMM as they are, so that no fp32 copy of the cache is made."""
    if left.is_cuda and left.dtype != torch.float32:
        found = torch.bmm(left.flatten(0, 1), right.flatten(0, 1), out_dtype=torch.float32)
        found = found.unflatten(0, left.shape[:2])
        return found if scale is None else found.mul_(scale)
    left = left.float() if scale is None else left.float() * scale
    return left @ right.float()


def _grow(part: torch.Tensor, capacity: int) -> torch.Tensor:
    grown = part.new_zeros(*part.shape[:2], capacity, part.shape[3])
    grown[:, :, : part.shape[2]] = part
    return grown


def _widen(written: torch.Tensor, capacity: int, filler: float) -> torch.Tensor:
    return torch.cat([written, written.new_full((capacity - len(written),), filler)])
