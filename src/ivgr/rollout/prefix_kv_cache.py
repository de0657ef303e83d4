"""The KV cache of a rollout. It stores keys and values once: of a prefix, which holds a query's prompts and
is shared by all its branches, and of each branch, which is one response.

Attention over the two is computed separately and merged by log-sum-exp, so that a prefix is read once
for all branches of its query and never copied. In: a layer's projections. Out: its attention output.
"""

from typing import cast

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask

from ivgr.models.tree_attention import attend_mask

GROWTH = 64
HIDDEN = torch.finfo(torch.float32).min  # what is added to the score of a token that is not seen

KeysValues = tuple[torch.Tensor, torch.Tensor]


class TreeCache:
    """The prefill fills it with P prefixes, L tokens wide; after `fork`, R branches decode, with room for
    T tokens each. H is the number of key heads, D their size."""

    def __init__(self) -> None:
        none = torch.empty(0, dtype=torch.long)
        self.decoding = False
        self.prefix_kv: list[KeysValues] = []  # of each layer, (P, H, L, D)
        self.branch_kv: list[KeysValues] = []  # of each layer, (R, H, T, D)
        self.prefix_of = none  # (R,): a branch's row in prefix_kv
        self.slot = none  # (R,): a branch's column in branch_table
        self.branch_table = none  # (P, S): the branches of each prefix, S being the most that one has
        self.prefix_visible = none.bool()  # (R, L): the tokens of its prefix that a branch sees
        self.prefix_bias = none.float()  # (P, S, L): 0 for those, else HIDDEN
        self.branch_bias = none.float()  # (T,): 0 for positions that are written, else HIDDEN
        self.position = none  # (): where the next token of every branch is written
        self.limit = 0  # the most that T may be

    def fork(self, prefix_of: torch.Tensor, prefix_visible: torch.Tensor, limit: int) -> None:
        """Starts R branches: prefix_of (R,) in order, prefix_visible (R, L) bool; each holds up to
        `limit` tokens."""
        self.decoding = True
        self.prefix_visible = prefix_visible
        self.prefix_of = prefix_of
        self.limit = limit
        keys = self.prefix_kv[0][0]
        self.position = torch.zeros((), dtype=torch.long, device=keys.device)
        self.branch_bias = keys.new_full((0,), 0.0, dtype=torch.float32)
        empty = keys.new_empty(len(prefix_of), keys.shape[1], 0, keys.shape[3])
        self.branch_kv = [(empty, empty) for _ in self.prefix_kv]
        self._assign_slots()

    def begin_step(self, step: int) -> bool:
        """Makes room for token `step` of every branch; returns whether that took new tensors."""
        full = step == len(self.branch_bias)
        if full:
            capacity = min(step + GROWTH, self.limit)
            self.branch_bias = _widen(self.branch_bias, capacity, HIDDEN)
            self.branch_kv = [
                (_grow(keys, capacity), _grow(values, capacity)) for keys, values in self.branch_kv
            ]
        self.position.fill_(step)
        self.branch_bias[step] = 0.0
        return full

    def select(self, branches: torch.Tensor) -> None:
        """Keeps only these branches, and only the prefixes that have one."""
        prefixes, self.prefix_of = self.prefix_of[branches].unique(return_inverse=True)
        self.prefix_visible = self.prefix_visible[branches]
        if len(prefixes) < len(self.prefix_kv[0][0]):
            self.prefix_kv = [(keys[prefixes], values[prefixes]) for keys, values in self.prefix_kv]
        self.branch_kv = [(keys[branches], values[branches]) for keys, values in self.branch_kv]
        self._assign_slots()

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | BlockMask,
        scaling: float,
    ) -> torch.Tensor:
        """In prefill, stores the prefixes and attends under `mask`; in decoding, attends for one token per
        branch."""
        layer = cast(int, module.layer_idx)
        if not self.decoding:
            self.prefix_kv.append((key.contiguous(), value.contiguous()))
            return attend_mask(module, query, key, value, mask, scaling=scaling)
        branches, heads, _, size = query.shape
        query = query.view(branches, key.shape[1], -1, size)
        prefix, prefix_lse = self._attend_prefix(query, *self.prefix_kv[layer], scaling)
        keys, values = self.branch_kv[layer]
        keys.index_copy_(2, self.position[None], key)
        values.index_copy_(2, self.position[None], value)
        own, own_lse = _attend(query, keys, values, self.branch_bias, scaling)
        share = torch.sigmoid(prefix_lse - own_lse)
        both = (share * prefix + (1 - share) * own).to(value.dtype)
        return both.reshape(branches, 1, heads, size)

    def _attend_prefix(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the attention of queries (R, H, G, D) over their prefixes, of the same shape, and its
        log-sum-exp (R, H, G, 1)."""
        prefixes, slots = self.branch_table.shape
        _, groups, heads, size = query.shape
        tabled = query[self.branch_table].transpose(1, 2).reshape(prefixes, groups, slots * heads, size)
        bias = self.prefix_bias.repeat_interleave(heads, 1)[:, None]
        out, lse = _attend(tabled, keys, values, bias, scaling)
        out = out.view(prefixes, groups, slots, heads, size)[self.prefix_of, :, self.slot]
        return out, lse.view(prefixes, groups, slots, heads, 1)[self.prefix_of, :, self.slot]

    def _assign_slots(self) -> None:
        """Numbers the branches of each prefix and derives the tables from that."""
        branch = torch.arange(len(self.prefix_of), device=self.prefix_of.device)
        count = torch.bincount(self.prefix_of)
        first = count.cumsum(0) - count
        self.slot = branch - first[self.prefix_of]
        self.branch_table = self.prefix_of.new_zeros(len(count), int(count.max()))
        self.branch_table[self.prefix_of, self.slot] = branch
        hidden = ~self.prefix_visible[self.branch_table]
        self.prefix_bias = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, HIDDEN)


def _attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
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


def _widen(bias: torch.Tensor, capacity: int, filler: float) -> torch.Tensor:
    return torch.cat([bias, bias.new_full((capacity - len(bias),), filler)])
