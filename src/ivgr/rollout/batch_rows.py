"""Which branch decodes in which row of a batch: rows that are left go to branches that wait.

In: prompts with the numbers of their branches, in order. Out: prompts to prefill, and the rows of their
branches. Nothing here touches a tensor.
"""

import heapq
from collections import Counter, deque
from dataclasses import dataclass

from ivgr.core.query import Group, Query


@dataclass
class Prompt:
    """A query, and the numbers of the branches of each of its groups that are to be decoded."""

    query: Query
    groups: list[tuple[Group, list[int]]]

    @property
    def branches(self) -> list[int]:
        return [branch for _, branches in self.groups for branch in branches]

    def split(self, count: int) -> tuple["Prompt", "Prompt"]:
        """The prompt with its first `count` branches, and with the others."""
        first, rest = [], []
        for group, branches in self.groups:
            first.append((group, branches[:count]))
            rest.append((group, branches[count:]))
            count = max(count - len(branches), 0)
        return self._of(first), self._of(rest)

    def _of(self, groups: list[tuple[Group, list[int]]]) -> "Prompt":
        return Prompt(self.query, [(group, branches) for group, branches in groups if branches])


@dataclass
class Seated:
    """A prompt whose prefix has got a row of its own, and each of its branches too."""

    prompt: Prompt
    prefix: int
    rows: list[int]


class BatchRows:
    """The rows of a batch of up to R branches with up to P prefixes.

    Args:
        waiting: The prompts to decode.
        branches: R.
        prefixes: P.
        refill: Whether rows that are left go to the next prompt at once, or all together at the end.
    """

    def __init__(self, waiting: list[Prompt], branches: int, prefixes: int, refill: bool) -> None:
        self.waiting = deque(waiting)
        self.refill = refill
        self.free, self.free_prefixes = list(range(branches)), list(range(prefixes))
        self.prefix_of: dict[int, int] = {}  # of every row that is taken
        self.left: Counter[int] = Counter()  # branches of every prefix that is taken

    @property
    def taken(self) -> list[int]:
        return sorted(self.prefix_of)

    def seat(self) -> list[Seated]:
        """Gives rows to the prompts that come next, as long as they have room. Part of a prompt goes first
        where even an empty batch has no room for all of it."""
        seated: list[Seated] = []
        if self.prefix_of and not self.refill:
            return seated
        while self.waiting and self.free and self.free_prefixes:
            prompt = self.waiting[0]
            if len(prompt.branches) > len(self.free):
                if self.prefix_of:
                    break
                prompt, self.waiting[0] = prompt.split(len(self.free))
            else:
                self.waiting.popleft()
            seated.append(self._take(prompt))
        return seated

    def _take(self, prompt: Prompt) -> Seated:
        prefix = heapq.heappop(self.free_prefixes)
        rows = [heapq.heappop(self.free) for _ in prompt.branches]
        self.prefix_of |= dict.fromkeys(rows, prefix)
        self.left[prefix] = len(rows)
        return Seated(prompt, prefix, rows)

    def release(self, row: int) -> None:
        """A branch leaves its row, and the last one of a prefix that prefix's."""
        prefix = self.prefix_of.pop(row)
        heapq.heappush(self.free, row)
        self.left[prefix] -= 1
        if not self.left[prefix]:
            heapq.heappush(self.free_prefixes, prefix)

    def close_up(self) -> tuple[list[int], list[int]]:
        """Numbers the rows that are taken from 0 on, and gives up the others; returns which rows and prefixes
        are left, in order."""
        rows, prefixes = self.taken, sorted(set(self.prefix_of.values()))
        number = {prefix: new for new, prefix in enumerate(prefixes)}
        self.left = Counter({number[prefix]: self.left[prefix] for prefix in prefixes})
        self.prefix_of = {new: number[self.prefix_of[row]] for new, row in enumerate(rows)}
        self.free, self.free_prefixes = [], []
        return rows, prefixes
