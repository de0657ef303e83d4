"""Gold boxes: which are boxes, and how they come to lie in their image. `ivgr pack` and whoever loads
shards follow the same rule."""

import math
import re
from collections.abc import Sequence

from ivgr.core.rejection import RejectedSample

Box = tuple[float, ...]
LARGEST = 1e9  # of a coordinate

_TAG = re.compile(r"<box>((?:(?!</?box>).)*)</box>", re.DOTALL)
_NUMBER = r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*"
_COORDINATES = re.compile(rf"\s*\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]\s*")


def is_box(value: object) -> bool:
    """Four finite numbers, x1 < x2 and y1 < y2."""
    if not isinstance(value, list | tuple) or len(value) != 4 or not all(map(is_coordinate, value)):
        return False
    return value[0] < value[2] and value[1] < value[3]


def is_coordinate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def clip_box(box: Sequence[float], size: tuple[int, int], where: str) -> Box:
    """`box` as far as it lies in an image of `size` (width, height), its other numbers untouched.

    RejectedSample, its message beginning with `where`: "box: outside the image" if less than half of
    its area lies inside; "box: smaller than a pixel" if less than one pixel does,
    as when coordinates are shares of the image.
    """
    x1, y1, x2, y2 = max(box[0], 0), max(box[1], 0), min(box[2], size[0]), min(box[3], size[1])
    inside = max(x2 - x1, 0) * max(y2 - y1, 0)
    if inside * 2 < (box[2] - box[0]) * (box[3] - box[1]):
        reason, fault = "outside the image", "less than half of it lies in"
    elif inside < 1:
        reason, fault = "smaller than a pixel", "it covers less than a pixel of"
    else:
        return (x1, y1, x2, y2)
    raise RejectedSample(
        f"{where}: box {list(box)}: {fault} the image of {size[0]} x {size[1]} pixels; boxes are pixels of "
        "the upright original image",
        f"box: {reason}",
    )


def parse_boxes(text: str) -> list[tuple[float, ...]]:
    """The valid boxes of `text` in order, each (x1, y1, x2, y2).

    Valid is `<box>[x1,y1,x2,y2]</box>` with four finite numbers (integers, floats,
    exponents; spaces anywhere between them), x1 < x2 and y1 < y2. All others are left
    out; nothing is clipped or reordered.
    """
    found = (_COORDINATES.fullmatch(inner) for inner in _TAG.findall(text))
    boxes = (tuple(float(number) for number in match.groups()) for match in found if match)
    return [box for box in boxes if _is_valid(box)]


def _is_valid(box: Box) -> bool:
    return all(map(math.isfinite, box)) and box[0] < box[2] and box[1] < box[3]


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2), in [0, 1]."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    overlap = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    return overlap / union if math.isfinite(union) and union > 0 else 0.0


ROWS = ("upper", "middle", "lower")


COLUMNS = ("left", "center", "right")


def grid_cell(box: tuple[float, ...], width: float = 1000, height: float = 1000) -> str:
    """The cell of a 3 x 3 partition in which the box's centre lies, as "row column"."""
    x = (box[0] / 2 + box[2] / 2) / width
    y = (box[1] / 2 + box[3] / 2) / height
    return f"{ROWS[int(min(max(y * 3, 0), 2))]} {COLUMNS[int(min(max(x * 3, 0), 2))]}"
