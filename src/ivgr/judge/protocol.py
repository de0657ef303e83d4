"""The two questions a judge answers, each in batches; a verdict that never came is None."""

from dataclasses import dataclass, field
from numbers import Real
from typing import Protocol

from ivgr.core.errors import UserError
from ivgr.core.frame import Frame
from ivgr.core.sample import Sample

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
    """The question how well `reasoning` agrees with the `reference` reasoning. Boxes are in `frame`."""

    sample: Sample = field(hash=False)
    reference: str
    reasoning: str
    frame: Frame


class Judge(Protocol):
    """Decides what no rule can.

    Called in a background thread, one batch at a time; a batch may be empty. A judge may also have
    `report() -> dict[str, float]`: figures since the last call, logged as judge/NAME.
    """

    def agree(self, questions: list[Agreement]) -> list[bool | None]:
        """A verdict for each question, in order; None where there is none."""
        ...

    def compare(self, comparisons: list[Comparison]) -> list[float | None]:
        """A score for each comparison, in order: 1.0 the descriptions agree fully; 0.7 no
        contradiction, and something extra or something missing; 0.3 no contradiction, both
        extra and missing; 0.0 any contradiction, or nothing said. None where there is none."""
        ...


def take_verdicts(questions: list, verdicts: list) -> list:
    """`verdicts` as a judge gave them on `questions`, None in the place of what is no verdict: on an
    agreement all but true and false, on a comparison all but numbers from 0 to 1. UserError if there
    is not one for each."""
    if len(verdicts) != len(questions):
        raise UserError(
            f"model.judge: it gave {len(verdicts)} verdicts on {len(questions)} questions; it must give one "
            "on each, None where it has none"
        )
    return [
        verdict if _is_verdict(question, verdict) else None
        for question, verdict in zip(questions, verdicts, strict=True)
    ]


def _is_verdict(question: Agreement | Comparison, verdict: object) -> bool:
    if not isinstance(verdict, Real):
        return False
    return verdict in (0, 1) if isinstance(question, Agreement) else 0 <= float(verdict) <= 1


class RulesAlone:
    """No judge: an answer that no rule matches is wrong, and reasoning is compared with nothing."""

    def agree(self, questions: list[Agreement]) -> list[bool | None]:
        return [False for _ in questions]

    def compare(self, comparisons: list[Comparison]) -> list[float | None]:
        return [None for _ in comparisons]
