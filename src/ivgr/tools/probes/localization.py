"""Does the policy know where an object is when it speaks of it? A linear read-out of its box from
the hidden state at the noun, or just before the reasoning says where the object is.

In: traced readings (or features of another encoder). Out: how well the box can be read, on images
that the read-out has not seen, beside labels shuffled among objects.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from ivgr.core.boxes import COLUMNS, ROWS, grid_cell, iou
from ivgr.core.errors import UserError
from ivgr.core.frame import Frame
from ivgr.tools.probes.annotated_response import AnnotatedResponse, Point
from ivgr.tools.probes.linear_probe import logistic, ridge
from ivgr.tools.probes.probe_interval import Interval, mean_interval, ratio_intervals
from ivgr.tools.probes.trace import BUDGET, Traced, choose_layers, trace_readings

FOLDS, SHUFFLES, FEWEST = 5, 20, 10
PLACES = [f"{row} {column}" for row in ROWS for column in COLUMNS]


@dataclass(frozen=True)
class Named:
    """n objects that responses name: boxes (n, 4), centre x, y, width and height in shares of the
    picture; images (n,) the index of its reading; labels its nouns."""

    boxes: np.ndarray
    images: np.ndarray
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ReadOut:
    """What a linear read-out tells of unseen images' objects.

    centre, size: R² of the box's centre and sides against the mean of the objects it was fitted on
    (1: exact; 0 or less: it knows nothing); iou of the box read out with the gold one; place, the
    share of objects put into the right of nine places by a logistic read-out, and place_chance that
    of always saying the commonest. control: R² of the centre when boxes are shuffled among objects,
    over several shuffles (its `count`).
    """

    centre: Interval
    size: Interval
    iou: Interval
    place: Interval
    place_chance: Interval
    control: Interval
    objects: int


def list_named(readings: list[AnnotatedResponse], point: Point) -> Named:
    """The objects that the readings' reasoning names, in order; those that have a `point`."""
    found = [(n, reading, box) for n, reading in enumerate(readings) for box, _ in reading.points(point)]
    boxes = [_centre(reading.query.boxes[box], reading.query.frame) for _, reading, box in found]
    images = np.array([index for index, _, _ in found], int)
    labels = tuple(reading.query.sample.labels[box] for _, reading, box in found)
    return Named(np.array(boxes).reshape(-1, 4), images, labels)


def probe_localization(
    model: PreTrainedModel,
    readings: list[AnnotatedResponse],
    point: Point = "place",
    layers: Sequence[int] | None = None,
    budget: int = BUDGET,
) -> dict[int, ReadOut]:
    """A read-out for each of `layers` (all), by its number. UserError for a layer that is not there,
    and where fewer than FEWEST images have a named object."""
    states = gather_states(trace_readings(model, readings, layers, attention=False, budget=budget), point)
    named = list_named(readings, point)
    return {layer: read_out(states[:, n], named) for n, layer in enumerate(choose_layers(model, layers))}


def gather_states(traced: Iterable[Traced], point: Point) -> np.ndarray:
    """Hidden states (n, layers, H) at all mentions' `point`, in order, fp64."""
    return np.concatenate([one.at(point, one.states).double().numpy() for one in traced])


def read_out(
    features: np.ndarray, named: Named, folds: int = FOLDS, shuffles: int = SHUFFLES, seed: int = 0
) -> ReadOut:
    """Fits the read-out from features (n, H) of the named objects. UserError for fewer than FEWEST images."""
    if len(np.unique(named.images)) < FEWEST:
        raise UserError(
            f"probe: {len(np.unique(named.images))} images have an object that its label names in the "
            f"reasoning, a read-out needs {FEWEST}; give more samples, with labels that the policy says"
        )
    rng = np.random.default_rng(seed)
    mixed = [named.boxes[rng.permutation(len(named)), :2] for _ in range(shuffles)]
    targets = np.concatenate([named.boxes, *mixed], 1)
    predicted, means = ridge(features, targets, named.images, folds, seed)
    wrong, spread = (predicted - targets) ** 2, (means - targets) ** 2
    centre, size = (_r2(wrong[:, part], spread[:, part], named.images) for part in (slice(2), slice(2, 4)))
    overlap = [iou(_corners(a), _corners(b)) for a, b in zip(predicted[:, :4], named.boxes, strict=True)]
    places = np.array([PLACES.index(grid_cell(_corners(box), 1, 1)) for box in named.boxes])
    told, commonest = logistic(features, places, named.images, folds, seed)
    return ReadOut(
        centre,
        size,
        mean_interval(np.array(overlap), named.images),
        mean_interval((told == places).astype(float), named.images),
        mean_interval((commonest == places).astype(float), named.images),
        _control(wrong[:, 4:], spread[:, 4:]),
        len(named),
    )


def _r2(wrong: np.ndarray, spread: np.ndarray, images: np.ndarray) -> Interval:
    """1 − the squared error by that of the mean, (n, 2) each; 1 is exact."""
    (found,) = ratio_intervals(wrong.sum(1, keepdims=True), spread.sum(1, keepdims=True), images)
    return Interval(1 - found.mean, 1 - found.high, 1 - found.low, found.count)


def _control(wrong: np.ndarray, spread: np.ndarray) -> Interval:
    """R² of each shuffle, two columns each: their mean and the middle 95 % of them."""
    values = 1 - wrong.sum(0).reshape(-1, 2).sum(1) / spread.sum(0).reshape(-1, 2).sum(1)
    return Interval(float(values.mean()), *map(float, np.quantile(values, [0.025, 0.975])), len(values))  # pyright: ignore[reportCallIssue]


def _centre(box: Sequence[float], frame: Frame) -> tuple[float, ...]:
    x1, y1, x2, y2 = frame.to_pixels(box, (1, 1))
    return ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)


def _corners(box: Sequence[float]) -> tuple[float, ...]:
    x, y, width, height = box
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
