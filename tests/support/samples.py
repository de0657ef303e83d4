"""Hand-made samples, rollouts, queries and judges that the tests share."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image

from ivgr.core.frame import Frame
from ivgr.core.query import Group, Query, Rollout
from ivgr.core.sample import Sample
from ivgr.judge import Agreement, Comparison

BOX = (100, 100, 300, 300)
RELATIVE = Frame(1000.0, 1000.0)


def encode_image(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(color: tuple = (200, 30, 30), size: tuple[int, int] = (16, 12), mode: str = "RGB") -> bytes:
    return encode_image(Image.new(mode, size, color), quality=95)


def make_sample(id: str = "s0", answer: str = "red", **fields) -> Sample:
    """A paired sample with one box, unless `fields` say otherwise."""
    given = {"question": "What color is it?", "boxes": (BOX,), "images": (jpeg(),), **fields}
    return Sample(id=id, answer=answer, **given)


def response(think: str, answer: str = "red") -> str:
    return f"<think>{think}</think><answer>{answer}</answer>"


def make_rollout(text: str, **terms: float) -> Rollout:
    zeros = torch.zeros(3)
    return Rollout(torch.arange(3), zeros, zeros, text, truncated=False, terms=terms)


def make_query(sample: Sample, frame: Frame = RELATIVE, **rollouts: Sequence[Rollout]) -> Query:
    """A query whose gold boxes are the sample's, taken to lie in `frame` already."""
    groups = [Group(stream, torch.tensor([7]), list(found)) for stream, found in rollouts.items()]
    return Query(sample, torch.tensor([1, 2]), groups, sample.boxes, frame)


@dataclass
class RecordingJudge:
    """Gives fixed verdicts and keeps what it was asked."""

    agrees: bool | None = False
    score: float | None = 0.7
    answers: list[str] = field(default_factory=list)
    comparisons: list[tuple[str, str, Frame]] = field(default_factory=list)

    def agree(self, questions: list[Agreement]) -> list[bool | None]:
        self.answers += [question.answer for question in questions]
        return [self.agrees] * len(questions)

    def compare(self, comparisons: list[Comparison]) -> list[float | None]:
        self.comparisons += [(c.reference, c.reasoning, c.frame) for c in comparisons]
        return [self.score] * len(comparisons)
