"""A map over the image tokens, drawn over the picture. In: a picture, a map, boxes. Out: a picture."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from ivgr.picture import TILE, draw_boxes, shrink

GOLD = "#14a03c"
COLD, WARM, HOT = "#0b0724", "#b5367a", "#fcfdbf"
OPACITY = 0.7


def draw_heat(
    image: Image.Image,
    heat: np.ndarray,
    boxes: Sequence[Sequence[float]] = (),
    side: int = TILE,
    color: str = GOLD,
) -> Image.Image:
    """`image`, its longer side `side` pixels, under `heat` (rows, columns) ≥ 0, from dark (0) over
    magenta to pale (its greatest value), a token a rectangle; `boxes` in pixels of `image`."""
    picture = shrink(image, side)
    scaled = heat / max(float(heat.max()), np.finfo(float).tiny)
    tokens = Image.fromarray((255 * scaled).round().astype(np.uint8))
    colored = ImageOps.colorize(tokens, COLD, HOT, WARM)
    over = colored.resize(picture.size, Image.Resampling.NEAREST)
    drawn = Image.blend(picture.convert("RGB"), over, OPACITY)
    draw_boxes(drawn, boxes, image.size, colors=[color])
    return drawn
