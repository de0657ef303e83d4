"""Keys and values of branches in pages of a pool: a branch takes what its length needs, and what it leaves
is the next one's. Nothing is copied where branches grow.

In: a layer's projections for one token per branch. Out: its attention, by a Triton kernel.
"""

import torch

from ivgr.kernels.paged_attention import PAGE, attend_pages
from ivgr.kernels.prefixes import Prefixes
from ivgr.rollout.attention import KeysValues
from ivgr.rollout.branch_kv import EXPECTED


class PagedKV:
    """A pool of `tokens` tokens for up to `branches` (R) branches of up to `limit` tokens each. Rows that
    nobody has write to page 0."""

    def __init__(self, branches: int, limit: int, tokens: int, device: torch.device) -> None:
        self.branches = branches
        self.limit = limit
        self.version = 0
        self.pages = _pages(tokens) + 1
        self.free = list(range(self.pages - 1, 0, -1))
        self.owned: dict[int, list[int]] = {}  # the pages of every row that is taken
        self.left: list[int] = []  # rows whose pages are no longer theirs
        self.ended, self.ended_tokens = 0, 0
        self.kv: list[KeysValues] = []  # of each layer, (pages, H, PAGE, D)
        self.table = torch.zeros(branches, _pages(limit), dtype=torch.int32, device=device)
        self.position = torch.zeros(branches, dtype=torch.long, device=device)

    def add_layer(self, key: torch.Tensor) -> None:
        shape = (self.pages, key.shape[1], PAGE, key.shape[3])
        self.kv.append((key.new_zeros(shape), key.new_zeros(shape)))

    def free_branches(self) -> int:
        """Returns how many more branches find room, if all become as long as those that have ended."""
        mean = self.ended_tokens // self.ended if self.ended else EXPECTED
        each = _pages(min(max(mean, 1), self.limit))
        promised = sum(max(each - len(own), 0) for own in self.owned.values())
        return max(len(self.free) - promised, 0) // each

    def reserve(self, tokens: dict[int, int]) -> bool:
        wanted = {
            row: _pages(min(count, self.limit)) - len(self.owned.get(row, ()))
            for row, count in tokens.items()
        }
        if sum(count for count in wanted.values() if count > 0) > len(self.free):
            return False
        if self.left:
            self.table[torch.tensor(self.left, device=self.table.device)] = 0
        news, self.left = [], []
        for row, count in wanted.items():
            own = self.owned.setdefault(row, [])
            for _ in range(count):
                news.append((row, len(own), self.free[-1]))
                own.append(self.free.pop())
        if news:
            row, place, page = torch.tensor(news, device=self.table.device).T
            self.table[row, place] = page.int()
        return True

    def release(self, row: int, tokens: int) -> None:
        self.free += self.owned.pop(row, [])
        self.left.append(row)
        self.ended, self.ended_tokens = self.ended + 1, self.ended_tokens + tokens

    def select(self, rows: list[int]) -> None:
        kept = torch.tensor(rows, device=self.table.device)
        self.table, self.position = self.table[kept], self.position[kept]
        self.owned = {new: self.owned[row] for new, row in enumerate(rows) if row in self.owned}
        self.left = []
        self.version += 1

    def begin_step(self, position: torch.Tensor) -> None:
        self.position.copy_(position)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        prefixes: Prefixes,
        scaling: float,
    ) -> torch.Tensor:
        return attend_pages(query, key, value, self.kv[layer], self.table, self.position, prefixes, scaling)


def _pages(tokens: int) -> int:
    return -(-tokens // PAGE)
