"""Coordinate frames: where the boxes that a model reads and writes lie.

Gold boxes are kept in pixels of the original image and brought into the model's frame here
and nowhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Frame:
    """The coordinate range of one image's boxes, as the model writes them."""

    width: float
    height: float

    def from_pixels(self, box: Sequence[float], size: tuple[int, int]) -> tuple[float, ...]:
        """`box` in pixels of an image of `size` (width, height) → this frame."""
        x, y = self.width / size[0], self.height / size[1]
        return (box[0] * x, box[1] * y, box[2] * x, box[3] * y)

    def to_pixels(self, box: Sequence[float], size: tuple[int, int]) -> tuple[float, ...]:
        """The inverse of `from_pixels`."""
        x, y = size[0] / self.width, size[1] / self.height
        return (box[0] * x, box[1] * y, box[2] * x, box[3] * y)


RELATIVE = Frame(1000.0, 1000.0)


def relative(resized: tuple[int, int]) -> Frame:
    """Thousandths of the image, whatever its processor resized it to."""
    return RELATIVE


def absolute(resized: tuple[int, int]) -> Frame:
    """Pixels of the image as its processor `resized` it, (width, height)."""
    return Frame(*map(float, resized))
