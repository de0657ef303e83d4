"""Boxes written in text: reading them, comparing them, and the two rewards on them.

Coordinates are compared as given: bring gold boxes into the model's frame first
(`ivgr.core.frame`). Source: R_box and R_valid of iVGR (arXiv 2605.31096).
"""

from collections.abc import Sequence

from ivgr.core.boxes import iou, parse_boxes
from ivgr.core.query import Query, Rollout


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


def rate_boxes(rollout: Rollout, query: Query) -> float:
    """R_box of a rollout."""
    return box_reward(rollout.text, query.boxes)


def rate_validity(rollout: Rollout, query: Query) -> float:
    """R_valid of a rollout."""
    return box_validity(rollout.text)
