"""Attention as pictures. In: readings. Out: maps over the image tokens, drawn over the images."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps
from transformers import PreTrainedModel

from ivgr.plotting.pictures import GOLD, TILE, draw_boxes, shrink
from ivgr.tools.probes.annotated_response import AnnotatedResponse
from ivgr.tools.probes.attention_probe import Look
from ivgr.tools.probes.token_grid import grid_shape
from ivgr.tools.probes.trace import Traced, trace_readings

COLD, WARM, HOT = "#0b0724", "#b5367a", "#fcfdbf"
OPACITY = 0.65


def heat_of(model: PreTrainedModel, traced: Traced, look: Look, head: int | None = None) -> np.ndarray:
    """The attention (rows, columns) of a traced reading, summing to 1 over the picture: averaged over
    the traced layers, and over all heads or of one, and with look "noun" or "place" over those points;
    zero where there is none. The reading must have an image."""
    heat = traced.think[None] if look == "think" else traced.at(look, traced.looks)
    heat = (heat if head is None else heat[:, :, head : head + 1]).double().numpy()
    heat = np.nan_to_num(heat).reshape(-1, heat.shape[-1]).sum(0)
    return (heat / (heat.sum() or 1.0)).reshape(grid_shape(model, traced.reading.query))


def draw_heat(
    image: Image.Image, heat: np.ndarray, boxes: Sequence[Sequence[float]] = (), side: int = TILE
) -> Image.Image:
    """`image`, its longer side `side` pixels, under `heat` (rows, columns) ≥ 0, from dark (0) over
    magenta to pale (its greatest value), one rectangle per token; `boxes`, in pixels of `image`, in green."""
    picture = shrink(image, side)
    scaled = heat / max(float(heat.max()), np.finfo(float).tiny)
    tokens = Image.fromarray((255 * scaled).round().astype(np.uint8))
    colored = ImageOps.colorize(tokens, COLD, HOT, WARM)
    over = colored.resize(picture.size, Image.Resampling.NEAREST)
    drawn = Image.blend(picture.convert("RGB"), over, OPACITY)
    draw_boxes(drawn, boxes, image.size, colors=[GOLD])
    return drawn


def draw_readings(
    model: PreTrainedModel, readings: list[AnnotatedResponse], look: Look, layer: int, side: int = TILE
) -> np.ndarray:
    """The readings' first images under the attention of `layer`, all heads, with gold boxes, side by
    side: (side, n · side, 3) uint8. Every reading must have an image."""
    tiles = []
    for traced in trace_readings(model, readings, [layer]):
        query = traced.reading.query
        image = query.sample.open_images()[0]
        drawn = draw_heat(image, heat_of(model, traced, look), query.sample.boxes, side)
        tile = Image.new("RGB", (side, side), "white")
        tile.paste(drawn)
        tiles.append(np.asarray(tile))
    return np.concatenate(tiles, 1)
