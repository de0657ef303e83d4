"""A judge that needs no language model: it reads the tiny world's statements exactly."""

from ivgr.judge.protocol import Agreement, Comparison
from ivgr.toy.statements import read_claims


class RuleJudge:
    """Compares claims (object, attribute, value); a box claims the place of its centre. Of texts
    that are not the tiny world's it understands nothing."""

    def agree(self, questions: list[Agreement]) -> list[bool | None]:
        """False: the rules before the judge are all there is."""
        return [False for _ in questions]

    def compare(self, comparisons: list[Comparison]) -> list[float | None]:
        """The rubric of `Judge.compare` on claims. Reasoning that claims nothing agrees
        with nothing: 0.0, so that silence cannot be a way to avoid contradiction."""
        return [_score(comparison) for comparison in comparisons]


def _score(comparison: Comparison) -> float:
    frame = comparison.frame
    wanted = read_claims(comparison.reference, frame.width, frame.height)
    stated = read_claims(comparison.reasoning, frame.width, frame.height)
    if not stated or _contradict(wanted | stated):
        return 0.0
    extra, missing = stated - wanted, wanted - stated
    if extra and missing:
        return 0.3
    return 0.7 if extra or missing else 1.0


def _contradict(claims: set) -> bool:
    """Whether one attribute of one object is given two values."""
    return len({claim[:2] for claim in claims}) < len(claims)
