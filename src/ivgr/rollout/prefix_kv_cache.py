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

from ivgr.models.tree_attention import attend_mask

# Tokens by which the room of all branches grows, and on a GPU what is read of it.
GROWTH, READ = 64, 256
HIDDEN = torch.finfo(torch.float32).min  # what is added to the score of a token that is not seen

KeysValues = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class CacheSize:
    """Room for `prefixes` (P) of up to `width` (L) tokens, each with up to `siblings` (S) branches at a
    time, and for `branches` (R) of up to `limit` (T) tokens in all."""

    prefixes: int
    width: int
    siblings: int
    branches: int
    limit: int


class TreeCache:
    """Prefixes and branches come and go, each in a row of its own; what stands in a row that nobody has is
    never seen. H is the number of key heads, D their size.

    Args:
        size: The most that it holds.
        device: Where it lies. On a GPU all room is taken at once, since growing copies and leaves holes.
    """

    def __init__(self, size: CacheSize, device: torch.device) -> None:
        self.size = size
        self.grows, self.growth = (False, READ) if device.type == "cuda" else (True, GROWTH)
        self.prefix_kv: list[KeysValues] = []  # of each layer, (P, H, L, D)
        self.branch_kv: list[KeysValues] = []  # of each layer, (R, H, room, D)
        self.used = 0  # tokens of a branch that a step reads, the longest branch's and a few more
        self.prefix_count = 0  # rows of prefix_kv that anyone has had
        self.prefilled: torch.Tensor | None = None  # during a prefill, the rows of its prefixes
        rows = torch.zeros(size.branches, dtype=torch.long, device=device)
        self.row = torch.arange(size.branches, device=device)
        self.prefix_of = rows  # (R,): a branch's row in prefix_kv
        self.column = rows.clone()  # (R,): its column in branch_table
        self.position = rows.clone()  # (R,): where its next token is written
        self.branch_table = rows.new_zeros(size.prefixes, size.siblings)  # the branches of each prefix
        # (P, S, L) and (R, room): 0 for tokens that a branch sees, else HIDDEN.
        self.prefix_bias = torch.full((size.prefixes, size.siblings, size.width), HIDDEN, device=device)
        self.branch_bias = self.prefix_bias.new_zeros(size.branches, 0)

    def begin_prefill(self, prefixes: list[int]) -> None:
        """The next pass fills these rows of prefix_kv, one with each of its rows."""
        self.prefilled = torch.tensor(prefixes, device=self.row.device)
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

    def make_room(self, tokens: int) -> bool:
        """Lets steps read the first `tokens` of every branch, or a few more; returns whether that took new
        tensors."""
        self.used = min(-(-tokens // self.growth) * self.growth, self.size.limit)
        if self.used <= self.branch_bias.shape[1]:
            return False
        room = self.used if self.grows else self.size.limit
        self.branch_bias = self.branch_bias.new_zeros(self.size.branches, room)
        for layer, (keys, values) in enumerate(self.branch_kv):
            self.branch_kv[layer] = _widen(keys, room), _widen(values, room)
        return True

    def begin_step(self, position: torch.Tensor) -> None:
        """position (R,): the number of each branch's next token, which it will see itself; in a row that
        nobody has it may lie anywhere."""
        self.position.copy_(position.clamp(max=self.used - 1))
        column = torch.arange(self.branch_bias.shape[1], device=position.device)
        self.branch_bias.zero_().masked_fill_(column > self.position[:, None], HIDDEN)

    def select(self, rows: list[int], prefixes: list[int]) -> None:
        """Keeps only these branches and prefixes, in this order."""
        device = self.prefix_of.device
        kept, kept_prefixes = torch.tensor(rows, device=device), torch.tensor(prefixes, device=device)
        renumbered = self.prefix_of.new_zeros(self.size.prefixes)
        renumbered[kept_prefixes] = torch.arange(len(prefixes), device=device)
        self.prefix_of, self.column = renumbered[self.prefix_of[kept]], self.column[kept]
        self.position, self.row = self.position[kept], self.row[: len(rows)]
        self.branch_table = self.branch_table.new_zeros(len(prefixes), self.size.siblings)
        self.branch_table[self.prefix_of, self.column] = self.row
        self.prefix_bias = self.prefix_bias[kept_prefixes]
        self.branch_bias = self.branch_bias[kept]
        for layer in range(len(self.prefix_kv)):
            if len(prefixes) < self.size.prefixes:
                keys, values = self.prefix_kv[layer]
                self.prefix_kv[layer] = keys[kept_prefixes], values[kept_prefixes]
            keys, values = self.branch_kv[layer]
            self.branch_kv[layer] = keys[kept], values[kept]
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
        prefix, prefix_lse = self._attend_prefix(query, *self.prefix_kv[layer], scaling)
        keys, values = self.branch_kv[layer]
        keys[self.row, :, self.position] = key[:, :, 0]
        values[self.row, :, self.position] = value[:, :, 0]
        bias = self.branch_bias[:, None, None, : self.used]
        own, own_lse = _attend(query, keys[:, :, : self.used], values[:, :, : self.used], bias, scaling)
        share = torch.sigmoid(prefix_lse - own_lse)
        both = (share * prefix + (1 - share) * own).to(value.dtype)
        return both.reshape(branches, 1, heads, size)

    def _store(self, layer: int, rows: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        _, heads, length, size = key.shape
        if layer == len(self.prefix_kv):
            shape = (self.size.prefixes, heads, self.size.width, size)
            self.prefix_kv.append((key.new_zeros(shape), value.new_zeros(shape)))
            empty = key.new_zeros(self.size.branches, heads, 0, size)
            self.branch_kv.append((empty, empty))
        keys, values = self.prefix_kv[layer]
        keys[rows, :, :length], values[rows, :, :length] = key, value

    def _attend_prefix(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the attention of queries (R, H, G, D) over their prefixes, of the same shape, and its
        log-sum-exp (R, H, G, 1)."""
        count, siblings = self.prefix_count, self.size.siblings
        _, groups, heads, size = query.shape
        tabled = (
            query[self.branch_table[:count]].transpose(1, 2).reshape(count, groups, siblings * heads, size)
        )
        bias = self.prefix_bias[:count].repeat_interleave(heads, 1)[:, None]
        out, lse = _attend(tabled, keys[:count], values[:count], bias, scaling)
        out = out.view(count, groups, siblings, heads, size)[self.prefix_of, :, self.column]
        return out, lse.view(count, groups, siblings, heads, 1)[self.prefix_of, :, self.column]


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


def _widen(part: torch.Tensor, length: int) -> torch.Tensor:
    """`part` (B, H, T, D) with zeros behind it, `length` tokens in all."""
    widened = part.new_zeros(*part.shape[:2], length, part.shape[3])
    widened[:, :, : part.shape[2]] = part
    return widened
