"""Gold boxes: which are boxes, and how they come to lie in their image. `ivgr pack` and whoever loads
shards follow the same rule."""

from collections.abc import Sequence

from ivgr.data.rejection import RejectedSample

Box = tuple[float, ...]
LARGEST = 1e9  # of a coordinate


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
