"""Does the policy look where the gold boxes are? Attention of response tokens to image tokens.

In: traced readings. Out: figures of the attention within the image, by layer and head, against what
boxes of that size would get by chance.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from transformers import PreTrainedModel

from ivgr.core.frame import Frame
from ivgr.tools.probes.annotated_response import AnnotatedResponse
from ivgr.tools.probes.probe_interval import Interval, mean_interval, mean_intervals
from ivgr.tools.probes.token_grid import coverage, grid_shape
from ivgr.tools.probes.trace import BUDGET, Traced, trace_readings

Look = Literal["think", "noun", "place"]
LOOKS: tuple[Look, ...] = ("think", "noun", "place")
Box = Sequence[float]
UNIT = Frame(1.0, 1.0)
OTHERS = 4


@dataclass(frozen=True)
class Attention:
    """Attention to the image; all but the last three are means over the layers and heads looked at.

    image: share of all attention that goes to the first image. Of that: inside, the share that lies
    in the gold boxes; area, what an even look would leave there, the boxes' share of the picture;
    chance, what this very look leaves in the boxes of other questions (high for a look that always
    goes to the middle). pointing: how often a gold box touches the token looked at most;
    pointing_chance: how often it touches a token. heads, pointing_heads: inside and pointing of each
    head of each layer. best: inside of the head for which it is highest on one half of the images,
    measured on the other half, each in turn.
    """

    image: Interval
    inside: Interval
    area: Interval
    chance: Interval
    pointing: Interval
    pointing_chance: Interval
    best: Interval
    heads: tuple[tuple[Interval, ...], ...]
    pointing_heads: tuple[tuple[Interval, ...], ...]


def probe_attention(
    model: PreTrainedModel,
    readings: list[AnnotatedResponse],
    looks: Sequence[Look] = LOOKS,
    layers: Sequence[int] | None = None,
    budget: int = BUDGET,
) -> dict[Look, Attention]:
    """Measures where the responses of `readings` attend in their images, one image per reading. UserError for
    a layer that does not exist; NaN over 0 images if there is nothing to measure."""
    glances: dict[Look, AttentionStats] = {look: AttentionStats(model, readings, look) for look in looks}
    for index, traced in enumerate(trace_readings(model, readings, layers, budget=budget)):
        for found in glances.values():
            found.add(index, traced)
    return {look: found.compute() for look, found in glances.items()}


class AttentionStats:
    """Gathers figures of traced readings, whose maps it does not keep.

    look "think" is the average over the reasoning's tokens, with all gold boxes; "noun" and "place"
    are those points of each mention, with the box of the object it names.
    """

    def __init__(self, model: PreTrainedModel, readings: list[AnnotatedResponse], look: Look) -> None:
        self.model = model
        self.look: Look = look
        self.boxes: list[list[Box]] = [
            [_to_unit(box, r.query.frame) for box in r.query.boxes] for r in readings
        ]
        self.images: list[int] = []
        self.rows: list[tuple[np.ndarray, ...]] = []

    def add(self, index: int, traced: Traced) -> None:
        """Adds reading `index`; adds nothing without an image, a gold box or a look."""
        shape = grid_shape(self.model, traced.reading.query)
        if not shape[0]:
            return
        for found, boxes in self._looks(index, traced):
            self.images.append(index)
            self.rows.append(self._figures(index, found, coverage(boxes, UNIT, shape).ravel(), shape))

    def _looks(self, index: int, traced: Traced) -> Iterator[tuple[np.ndarray, list[Box]]]:
        """Attention (layers, heads, image tokens), and the boxes that are sought by it."""
        boxes, reading, look = self.boxes[index], traced.reading, self.look
        if look != "think":
            looks = traced.at(look, traced.looks)
            for (box, _), found in zip(reading.points(look), looks, strict=True):
                yield found.numpy(), [boxes[box]]
        elif reading.think and boxes:
            yield traced.think.numpy(), boxes

    def _figures(
        self, index: int, found: np.ndarray, covered: np.ndarray, shape: tuple[int, int]
    ) -> tuple[np.ndarray, ...]:
        """total, inside, chance, pointing, area and touched, each (layers, heads); NaN where a head
        has nothing to say."""
        total = found.astype(float).sum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = found / total[..., None]
        missed = np.full(total.shape, np.nan)
        others = [shares @ other for other in self._elsewhere(index, shape)]
        hit = np.where(total > 0, covered[found.argmax(-1)] > 0, np.nan)
        area, touched = np.full_like(total, covered.mean()), np.full_like(total, (covered > 0).mean())
        return total, shares @ covered, np.mean(others, 0) if others else missed, hit, area, touched

    def _elsewhere(self, index: int, shape: tuple[int, int]) -> Iterator[np.ndarray]:
        """Yields what the boxes of the next OTHERS questions would cover of this image: all boxes, or one."""
        for step in range(1, min(OTHERS + 1, len(self.boxes))):
            boxes = self.boxes[(index + step) % len(self.boxes)]
            if boxes:
                sought = boxes if self.look == "think" else [boxes[index % len(boxes)]]
                yield coverage(sought, UNIT, shape).ravel()

    def compute(self) -> Attention:
        if not self.rows:
            nothing = mean_interval(np.zeros(0), np.zeros(0))
            return Attention(*[nothing] * 7, (), ())  # pyright: ignore[reportCallIssue]
        images = np.array(self.images)
        total, inside, chance, hit, area, touched = map(np.stack, zip(*self.rows, strict=True))
        means = [mean_interval(_over_heads(c), images) for c in (total, inside, area, chance, hit, touched)]
        best = mean_interval(_best_of_other_half(inside, images), images)
        return Attention(*means, best, _by_head(inside, images), _by_head(hit, images))  # pyright: ignore[reportCallIssue]


def _to_unit(box: Box, frame: Frame) -> tuple[float, ...]:
    """`box` in shares of the picture."""
    return frame.to_pixels(box, (1, 1))


def _over_heads(values: np.ndarray) -> np.ndarray:
    """The mean (n,) over layers and heads of values (n, layers, heads), of those there are."""
    flat = values.reshape(len(values), -1)
    known = ~np.isnan(flat)
    with np.errstate(invalid="ignore"):
        return np.where(known, flat, 0).sum(1) / known.sum(1)


def _best_of_other_half(values: np.ndarray, images: np.ndarray) -> np.ndarray:
    """values (n, layers, heads) of the head that is best on the images of the other half."""
    flat, half = values.reshape(len(values), -1), np.unique(images, return_inverse=True)[1] % 2
    chosen = np.full(len(flat), np.nan)
    for mine in (0, 1):
        other = np.nan_to_num(flat[half != mine], nan=0.0)
        if len(other):
            chosen[half == mine] = flat[half == mine, other.mean(0).argmax()]
    return chosen


def _by_head(values: np.ndarray, images: np.ndarray) -> tuple[tuple[Interval, ...], ...]:
    found = mean_intervals(values.reshape(len(values), -1), images)
    heads = values.shape[2]
    return tuple(tuple(found[start : start + heads]) for start in range(0, len(found), heads))
