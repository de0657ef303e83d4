"""The protocol of reward terms, ours and the user's own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ivgr.core.query import Query, Rollout
from ivgr.judge.protocol import Agreement, Comparison

Question = Agreement | Comparison


class RewardTerm(Protocol):
    """One term of the reward. It is called before the archive takes in what qualifies; with an attribute
    `after_archive = True`, after it.

    streams: whose rollouts have the term; weight: its factor in the sum, 0 switches it off (it is still
    logged).
    """

    streams: Sequence[str]
    weight: float

    def __call__(self, rollout: Any, query: Any) -> Any:
        """Returns the value for a `Rollout` of a `Query`, or the `Question` whose verdict becomes the value.
        (A parser compares annotations word by word, so these are left to the term.)"""


@dataclass(frozen=True)
class FunctionTerm:
    """A `RewardTerm` made of a function."""

    streams: Sequence[str]
    weight: float
    function: Callable[[Rollout, Query], float | Question]
    after_archive: bool = False

    def __call__(self, rollout: Rollout, query: Query) -> float | Question:
        return self.function(rollout, query)


class PendingVerdict(NamedTuple):
    """A rollout, and the question whose verdict its term waits for."""

    rollout: Rollout
    term: str
    question: Question
