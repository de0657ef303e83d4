"""A judge that needs no language model: it reads the tiny world's statements exactly."""

from ivgr.data.sample import Sample
from ivgr.families.frame import Frame
from ivgr.world.claims import read_claims


class RuleJudge:
    """Compares claims (object, attribute, value); a box claims the place of its centre."""

    def agree(self, sample: Sample, answer: str) -> bool:
        """False: the rules before the judge are all there is."""
        return False

    def consistency(self, sample: Sample, reference: str, reasoning: str, frame: Frame) -> float:
        """The rubric of `Judge.consistency` on claims. Reasoning that claims nothing agrees
        with nothing: 0.0, so that silence cannot be a way to avoid contradiction."""
        wanted = read_claims(reference, frame.width, frame.height)
        stated = read_claims(reasoning, frame.width, frame.height)
        if not stated or _contradict(wanted | stated):
            return 0.0
        extra, missing = stated - wanted, wanted - stated
        if extra and missing:
            return 0.3
        return 0.7 if extra or missing else 1.0


def _contradict(claims: set) -> bool:
    """Whether one attribute of one object is given two values."""
    return len({claim[:2] for claim in claims}) < len(claims)
