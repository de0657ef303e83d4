"""Boxes written in text: reading them, comparing them, and the two rewards on them.

Coordinates are compared as given: bring gold boxes into the model's frame first
(`ivgr.families.frame`). Source: R_box and R_valid of iVGR (arXiv 2605.31096).
"""

import math
import re
from collections.abc import Sequence

Box = tuple[float, ...]

_TAG = re.compile(r"<box>((?:(?!</?box>).)*)</box>", re.DOTALL)
_NUMBER = r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*"
_COORDINATES = re.compile(rf"\s*\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]\s*")


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


def box_reward(text: str, boxes: Sequence[Sequence[float]]) -> float:
    """R_box in [0, 1]: the mean of recall (best IoU of each gold box) and precision (best
    IoU of each valid written box). 0 without a valid written box or without a gold box."""
    written = parse_boxes(text)
    if not written or not boxes:
        return 0.0
    recall = sum(max(iou(gold, box) for box in written) for gold in boxes) / len(boxes)
    precision = sum(max(iou(box, gold) for gold in boxes) for box in written) / len(written)
    return (recall + precision) / 2


def box_validity(text: str, duplicate_iou: float = 0.9) -> float:
    """R_valid in [0, 1]: valid boxes among all `<box>` opened; 0 without any, and 0 when
    two of them overlap by more than `duplicate_iou`."""
    opened = text.count("<box>")
    written = parse_boxes(text)
    if not opened:
        return 0.0
    for i, box in enumerate(written):
        if any(iou(box, other) > duplicate_iou for other in written[:i]):
            return 0.0
    return len(written) / opened
