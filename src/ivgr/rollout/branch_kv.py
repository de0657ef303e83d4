"""Keys and values of branches: one tensor for all of them, which grows.

In: a layer's projections for one token per branch, and the prefixes. Out: its attention over both.
"""

from typing import Protocol

import torch

from ivgr.kernels.prefixes import Prefixes
from ivgr.rollout.attention import HIDDEN, KeysValues, attend, attend_prefixes, widen

# Tokens by which the room of all branches grows.
GROWTH = 64
# Tokens of a response that are reckoned with where branches take pages, until some have ended.
EXPECTED = 512


class BranchKV(Protocol):
    """Keys and values of up to R branches. Rows that nobody has hold anything, and are never read."""

    version: int
    """Grows whenever a step reads other tensors than before."""

    def add_layer(self, key: torch.Tensor) -> None:
        """Prepares for a layer whose keys are like `key` (·, H, ·, D)."""

    def free_branches(self) -> int | None:
        """Returns how many more branches there is room for, if that is bounded."""

    def reserve(self, tokens: dict[int, int]) -> bool:
        """Makes room for so many tokens in every row that is taken; returns whether there was room."""
        ...

    def release(self, row: int, tokens: int) -> None:
        """The branch of a row is gone, after so many tokens."""

    def select(self, rows: list[int]) -> None:
        """Keeps only these rows, in this order."""

    def begin_step(self, position: torch.Tensor) -> None:
        """position (R,): the number of each branch's next token, which it will see itself; in a row that
        nobody has it may lie anywhere below the longest."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        prefixes: Prefixes,
        scaling: float,
    ) -> torch.Tensor:
        """The attention (R, H, G, D) of query (R, H, G, D) over its prefix and its branch, to which key and
        value (R, H, D) are added."""
        ...


class DenseKV:
    """The room of all branches (R, H, T, D) grows as the longest does, up to `limit` tokens."""

    def __init__(self, branches: int, limit: int, device: torch.device) -> None:
        self.branches = branches
        self.limit = limit
        self.version = 0
        self.kv: list[KeysValues] = []  # of each layer, (R, H, T, D)
        self.row = torch.arange(branches, device=device)
        self.position = torch.zeros_like(self.row)
        self.bias = torch.zeros(branches, 0, device=device)  # (R, T): 0 for tokens that are seen, else HIDDEN

    def add_layer(self, key: torch.Tensor) -> None:
        empty = key.new_zeros(self.branches, key.shape[1], 0, key.shape[3])
        self.kv.append((empty, empty))

    def free_branches(self) -> None:
        """They are as many as there are rows."""

    def reserve(self, tokens: dict[int, int]) -> bool:
        room = min(-(-max(tokens.values(), default=0) // GROWTH) * GROWTH, self.limit)
        if room > self.bias.shape[1]:
            self.bias = self.bias.new_zeros(len(self.row), room)
            for layer, (keys, values) in enumerate(self.kv):
                self.kv[layer] = widen(keys, room), widen(values, room)
            self.version += 1
        return True

    def release(self, row: int, tokens: int) -> None:
        pass

    def select(self, rows: list[int]) -> None:
        kept = torch.tensor(rows, device=self.row.device)
        self.row, self.position, self.bias = self.row[: len(rows)], self.position[kept], self.bias[kept]
        for layer, (keys, values) in enumerate(self.kv):
            self.kv[layer] = keys[kept], values[kept]
        self.version += 1

    def begin_step(self, position: torch.Tensor) -> None:
        room = self.bias.shape[1]
        self.position.copy_(position.clamp(max=room - 1))
        column = torch.arange(room, device=position.device)
        self.bias.zero_().masked_fill_(column > self.position[:, None], HIDDEN)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        prefixes: Prefixes,
        scaling: float,
    ) -> torch.Tensor:
        keys, values = self.kv[layer]
        keys[self.row, :, self.position] = key
        values[self.row, :, self.position] = value
        own, own_lse = attend(query, keys, values, self.bias[:, None, None], scaling)
        before, before_lse = attend_prefixes(query, prefixes, scaling)
        share = torch.sigmoid(before_lse - own_lse)
        return (share * before + (1 - share) * own).to(value.dtype)
