"""The KV cache of a rollout. It stores keys and values once: of a prefix, which holds a query's prompts and
is shared by all its branches, and of each branch, which is one response.

Attention over the two is computed separately and merged by log-sum-exp, so that a prefix is read once
for all branches of its query and never copied. In: a layer's projections. Out: its attention output.
"""

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask

from ivgr.kernels.dispatch import uses_triton
from ivgr.kernels.prefixes import Prefixes
from ivgr.models.tree_attention import attend_mask
from ivgr.rollout.attention import HIDDEN, KeysValues
from ivgr.rollout.branch_kv import BranchKV, DenseKV


@dataclass(frozen=True, kw_only=True)
class CacheSize:
    """Room for `prefixes` (P) of up to `width` (L) tokens, each with up to `siblings` (S) branches at a
    time, and for `branches` (R) of up to `limit` (T) tokens each and `tokens` in all; in `layers` layers."""

    layers: int
    prefixes: int
    width: int
    siblings: int
    branches: int
    limit: int
    tokens: int


class TreeCache:
    """Prefixes and branches come and go, each in a row of its own; what stands in a row that nobody has is
    never seen. H is the number of key heads, D their size, G the query heads per key head.

    Args:
        size: The most that it holds.
        device: Where it lies.
    """

    def __init__(self, size: CacheSize, device: torch.device) -> None:
        self.size = size
        self.branches = make_branch_kv(size, device)
        self.prefix_kv: list[KeysValues] = []  # of each layer, (P, H, L, D)
        self.prefix_count = 0  # rows of prefix_kv that anyone has had
        self.prefilled: torch.Tensor | None = None  # during a prefill, the rows of its prefixes
        self.prefix_of = torch.zeros(
            size.branches, dtype=torch.long, device=device
        )  # (R,): rows in prefix_kv
        self.column = torch.zeros_like(self.prefix_of)  # (R,): a branch's column in branch_table
        self.branch_table = self.prefix_of.new_zeros(size.prefixes, size.siblings)  # each prefix's branches
        # (P, S, L): 0 for tokens that a branch sees, else HIDDEN.
        self.prefix_bias = torch.full((size.prefixes, size.siblings, size.width), HIDDEN, device=device)

    def begin_prefill(self, prefixes: list[int]) -> None:
        """The next pass fills these rows of prefix_kv, one with each of its rows."""
        self.prefilled = torch.tensor(prefixes, device=self.prefix_of.device)
        self.prefix_count = max(self.prefix_count, *(prefix + 1 for prefix in prefixes))

    def end_prefill(self) -> None:
        self.prefilled = None

    def place(
        self, rows: torch.Tensor, prefix_of: torch.Tensor, column: torch.Tensor, visible: torch.Tensor
    ) -> None:
        """Starts n branches in `rows` (n,) of prefixes prefix_of (n,), each in its column (n,) of them, which
        see the tokens visible (n, l) bool of their prefix."""
        self.prefix_of[rows], self.column[rows] = prefix_of, column
        self.branch_table[prefix_of, column] = rows
        bias = self.prefix_bias.new_full((len(rows), self.size.width), HIDDEN)
        bias[:, : visible.shape[1]].masked_fill_(visible, 0.0)
        self.prefix_bias[prefix_of, column] = bias

    def select(self, rows: list[int], prefixes: list[int]) -> None:
        """Keeps only these branches and prefixes, in this order."""
        device = self.prefix_of.device
        kept, kept_prefixes = torch.tensor(rows, device=device), torch.tensor(prefixes, device=device)
        renumbered = self.prefix_of.new_zeros(self.size.prefixes)
        renumbered[kept_prefixes] = torch.arange(len(prefixes), device=device)
        self.prefix_of, self.column = renumbered[self.prefix_of[kept]], self.column[kept]
        self.branch_table = self.branch_table.new_zeros(len(prefixes), self.size.siblings)
        self.branch_table[self.prefix_of, self.column] = torch.arange(len(rows), device=device)
        self.prefix_bias = self.prefix_bias[kept_prefixes]
        if len(prefixes) < self.size.prefixes:
            for layer, (keys, values) in enumerate(self.prefix_kv):
                self.prefix_kv[layer] = keys[kept_prefixes], values[kept_prefixes]
        self.branches.select(rows)
        self.prefix_count = len(prefixes)
        self.size = replace(self.size, prefixes=len(prefixes), branches=len(rows))

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
        if self.prefilled is not None:
            self._store(layer, self.prefilled, key, value)
            return attend_mask(module, query, key, value, mask, scaling=scaling)
        branches, heads, _, size = query.shape
        query = query.view(branches, key.shape[1], -1, size)
        both = self.attend_token(layer, query, key[:, :, 0], value[:, :, 0], scaling)
        return both.reshape(branches, 1, heads, size)

    def attend_token(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """The attention (R, H, G, D) of one token per branch, query (R, H, G, D), to prefix and branch, to
        which key and value (R, H, D) are added."""
        count, (keys, values) = self.prefix_count, self.prefix_kv[layer]
        prefixes = Prefixes(
            keys=keys[:count],
            values=values[:count],
            table=self.branch_table[:count],
            bias=self.prefix_bias[:count],
            prefix_of=self.prefix_of,
            column=self.column,
        )
        return self.branches.attend(layer, query, key, value, prefixes, scaling)

    def _store(self, layer: int, rows: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        _, heads, length, size = key.shape
        # All at once: between the tensors of a pass the layers' room would leave gaps.
        while len(self.prefix_kv) < self.size.layers:
            shape = (self.size.prefixes, heads, self.size.width, size)
            self.prefix_kv.append((key.new_zeros(shape), value.new_zeros(shape)))
            self.branches.add_layer(key)
        keys, values = self.prefix_kv[layer]
        keys[rows, :, :length], values[rows, :, :length] = key, value


def make_branch_kv(size: CacheSize, device: torch.device) -> BranchKV:
    """Pages where Triton's kernels run, else one tensor that grows."""
    if not uses_triton(device):
        return DenseKV(size.branches, size.limit, device)
    from ivgr.rollout.paged_kv import PagedKV

    return PagedKV(size.branches, size.limit, size.tokens, device)
