"""Which parts of an image a second look takes: boxes → rectangles → one around them all.

Pure: in are boxes in pixels and the image's size, out are whole pixels that lie within it. Which
rectangles come out does not depend on the order of the boxes; their order is that of the boxes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ivgr.core.boxes import Box, iou
from ivgr.core.settings import NonNegativeFloat, PositiveInt, Share, checked

Rectangle = tuple[int, int, int, int]

# Frames are converted in floats: 102.00000001 is pixel 102.
ROUNDING = 1e-5


@checked("cropping: ")
@dataclass(frozen=True, kw_only=True)
class Cropping:
    """Settings of the crops made from boxes."""

    margin: NonNegativeFloat = 0.1
    """Added on each side, as a share of the box's side."""

    smallest: PositiveInt = 56
    """Shortest side of a crop in pixels, where the image has as many."""

    most: PositiveInt = 8
    """Crops at most; of more boxes the smallest are taken, which gain most by a closer look."""

    duplicate_iou: Share = 0.9
    """Of two crops that overlap by more, one is left out."""

    def crop(self, box: Sequence[float], size: tuple[int, int]) -> Rectangle | None:
        """The rectangle cut out for `box` of an image of `size` (width, height); None if nothing
        of the box lies in the image."""
        across, down = (self._span(box[axis], box[axis + 2], size[axis]) for axis in (0, 1))
        if across is None or down is None:
            return None
        return across[0], down[0], across[1], down[1]

    def _span(self, low: float, high: float, limit: int) -> tuple[int, int] | None:
        """Returns the span on one axis: within [0, limit], the margin added, at least `smallest` long."""
        low, high = max(low, 0.0), min(high, float(limit))
        if low >= high:
            return None
        margin = self.margin * (high - low)
        start = max(math.floor(low - margin + ROUNDING), 0)
        end = min(math.ceil(high + margin - ROUNDING), limit)
        length = min(max(end - start, self.smallest), limit)
        start = min(max(start - (length - (end - start)) // 2, 0), limit - length)
        return start, start + length

    def crops(self, boxes: Sequence[Box], size: tuple[int, int]) -> list[Rectangle]:
        """The different crops of `boxes`, `most` at most."""
        found = list(dict.fromkeys(rectangle for box in boxes if (rectangle := self.crop(box, size))))
        chosen: list[Rectangle] = []
        for rectangle in sorted(found, key=lambda r: (_area(r), r)):
            if len(chosen) < self.most and all(iou(rectangle, c) <= self.duplicate_iou for c in chosen):
                chosen.append(rectangle)
        return [rectangle for rectangle in found if rectangle in chosen]

    def union(self, boxes: Sequence[Box], size: tuple[int, int]) -> Rectangle | None:
        """The smallest rectangle around the crop of every box, also of those that `crops` leaves
        out; None if there is none."""
        found = [rectangle for box in boxes if (rectangle := self.crop(box, size))]
        if not found:
            return None
        lefts, tops, rights, bottoms = zip(*found, strict=True)
        return min(lefts), min(tops), max(rights), max(bottoms)

    def look_again(self, boxes: Sequence[Box], size: tuple[int, int]) -> list[Rectangle]:
        """Returns what a second look shows: the crops, and last the one around them all, which may be the
        only one. Empty if no box lies in the image."""
        around = self.union(boxes, size)
        if around is None:
            return []
        return [rectangle for rectangle in self.crops(boxes, size) if rectangle != around] + [around]


def _area(rectangle: Rectangle) -> int:
    return (rectangle[2] - rectangle[0]) * (rectangle[3] - rectangle[1])
