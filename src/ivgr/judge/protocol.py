"""The two questions a judge answers."""

from typing import Protocol

from ivgr.data.sample import Sample
from ivgr.families.frame import Frame

CONSISTENCY_SCORES = (0.0, 0.3, 0.7, 1.0)


class Judge(Protocol):
    def agree(self, sample: Sample, answer: str) -> bool:
        """Whether `answer`, which no rule matched, means the sample's gold answer."""

    def consistency(self, sample: Sample, reference: str, reasoning: str, frame: Frame) -> float:
        """How well `reasoning` agrees with the `reference` reasoning, whose boxes are in
        `frame`: 1.0 the descriptions agree fully; 0.7 no contradiction, and something extra
        or something missing; 0.3 no contradiction, both extra and missing; 0.0 any
        contradiction."""
