"""The two questions a judge answers, each in batches; a verdict that never came is None."""

from dataclasses import dataclass, field
from typing import Protocol

from ivgr.data.sample import Sample
from ivgr.families.frame import Frame

CONSISTENCY_SCORES = (0.0, 0.3, 0.7, 1.0)


@dataclass(frozen=True)
class Agreement:
    """Does `answer`, which no rule matched, mean the sample's gold answer? given_up: the rule took
    too long to say."""

    sample: Sample = field(hash=False)
    answer: str
    given_up: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Comparison:
    """How well does `reasoning` agree with the `reference` reasoning? Boxes are in `frame`."""

    sample: Sample = field(hash=False)
    reference: str
    reasoning: str
    frame: Frame


class Judge(Protocol):
    """What no rule can decide.

    Called in a background thread, one batch at a time; a batch may be empty. A judge may
    also have `report() -> dict[str, float]`: figures since the last call, logged as judge/NAME.
    """

    def agree(self, questions: list[Agreement]) -> list[bool | None]:
        """A verdict for each question, in order; None where there is none."""

    def compare(self, comparisons: list[Comparison]) -> list[float | None]:
        """A score for each comparison, in order: 1.0 the descriptions agree fully; 0.7 no
        contradiction, and something extra or something missing; 0.3 no contradiction, both
        extra and missing; 0.0 any contradiction, or nothing said. None where there is none."""
