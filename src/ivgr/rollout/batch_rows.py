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

    def with_branches_of(self, other: "Prompt") -> "Prompt":
        """Both prompts, which are of one query, as one."""
        groups: dict[int, tuple[Group, list[int]]] = {}
        for group, branches in self.groups + other.groups:
            groups.setdefault(id(group), (group, []))[1].extend(branches)
        pairs = ((group, sorted(branches)) for group, branches in groups.values())
        return Prompt(self.query, sorted(pairs, key=lambda pair: pair[1]))

    def only(self, wanted: set[int]) -> "Prompt":
        """The prompt with those of its branches that are wanted."""
        groups = [(group, [one for one in branches if one in wanted]) for group, branches in self.groups]
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
        self.taken: dict[int, Seated] = {}  # what has each row that is taken
        self.left: Counter[int] = Counter()  # branches of every prefix that is taken

    def seat(self, room: int | None = None) -> list[Seated]:
        """Gives rows to the prompts that come next, as long as they have room: of free rows, and for `room`
        more branches if that is not None. Part of a prompt goes first where even an empty batch has no room
        for all of it."""
        seated: list[Seated] = []
        if self.taken and not self.refill:
            return seated
        while self.waiting and self.free and self.free_prefixes:
            prompt = self.waiting[0]
            count = len(self.free) if room is None else min(len(self.free), room)
            if len(prompt.branches) > count:
                if self.taken:
                    break
                first = set(prompt.branches[: max(count, 1)])
                self.waiting[0] = prompt.only(set(prompt.branches) - first)
                prompt = prompt.only(first)
            else:
                self.waiting.popleft()
            seated.append(self._take(prompt))
            room = room if room is None else room - len(prompt.branches)
        return seated

    def _take(self, prompt: Prompt) -> Seated:
        prefix = heapq.heappop(self.free_prefixes)
        seated = Seated(prompt, prefix, [heapq.heappop(self.free) for _ in prompt.branches])
        self.taken |= dict.fromkeys(seated.rows, seated)
        self.left[prefix] = len(seated.rows)
        return seated

    def release(self, row: int) -> None:
        """A branch leaves its row, and the last one of a prefix that prefix's."""
        prefix = self.taken.pop(row).prefix
        heapq.heappush(self.free, row)
        self.left[prefix] -= 1
        if not self.left[prefix]:
            heapq.heappush(self.free_prefixes, prefix)

    def put_back(self, row: int) -> None:
        """The branch of a row leaves it and waits again, before all others."""
        seated = self.taken[row]
        numbers = dict(zip(seated.rows, seated.prompt.branches, strict=True))
        back = seated.prompt.only({numbers[row]})
        if self.waiting and self.waiting[0].query is back.query:
            self.waiting[0] = back.with_branches_of(self.waiting[0])
        else:
            self.waiting.appendleft(back)
        self.release(row)

    def close_up(self) -> tuple[list[int], list[int]]:
        """Numbers the rows that are taken from 0 on, and gives up the others; returns which rows and prefixes
        are left, in order."""
        rows, prefixes = sorted(self.taken), sorted({one.prefix for one in self.taken.values()})
        number = {row: new for new, row in enumerate(rows)}
        seated = {one.prefix: self._left_of(one) for one in self.taken.values()}
        self.taken, self.left = {}, Counter()
        for new, prefix in enumerate(prefixes):
            one = seated[prefix]
            moved = Seated(one.prompt, new, [number[row] for row in one.rows])
            self.taken |= dict.fromkeys(moved.rows, moved)
            self.left[new] = len(moved.rows)
        self.free, self.free_prefixes = [], []
        return rows, prefixes

    def _left_of(self, seated: Seated) -> Seated:
        """`seated` without the branches that have left their rows."""
        pairs = zip(seated.rows, seated.prompt.branches, strict=True)
        left = {row: number for row, number in pairs if self.taken.get(row) is seated}
        return Seated(seated.prompt.only(set(left.values())), seated.prefix, list(left))
