"""Model families: the coordinate frame in which each reads and writes boxes.

Gold boxes are kept in pixels of the original image and brought into the family's frame
here and nowhere else (Qwen2-VL and Qwen3-VL: 0-1000 relative; Qwen2.5-VL: pixels of the
resized image).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ivgr.errors import UserError


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
_RELATIVE_FAMILIES = ("qwen2_vl", "qwen3_vl")
_ABSOLUTE_FAMILIES = ("qwen2_5_vl",)


def frame_of(model_type: str, resized: tuple[int, int]) -> Frame:
    """The frame of `model_type` for an image that its processor resized to `resized`
    (width, height) pixels; UserError for a family whose frame is not known."""
    if model_type in _RELATIVE_FAMILIES:
        return RELATIVE
    if model_type in _ABSOLUTE_FAMILIES:
        return Frame(*map(float, resized))
    known = ", ".join(_RELATIVE_FAMILIES + _ABSOLUTE_FAMILIES)
    raise UserError(f"model.policy: unknown model family {model_type!r}; known are {known}")
