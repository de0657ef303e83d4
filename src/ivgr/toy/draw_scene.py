"""Draws a `Scene` as an RGB picture: shapes on an uneven background lit from one corner."""

import numpy as np
from PIL import Image, ImageDraw

from ivgr.toy.scene import COLORS, Scene, Thing


def draw_scene(scene: Scene) -> Image.Image:
    """The scene as a `width` x `height` RGB image; each thing fills its box exactly."""
    image = Image.fromarray(_background(scene))
    pen = ImageDraw.Draw(image)
    for thing in scene.things:
        _draw_thing(pen, thing, scene.box(thing))
    return image


def _background(scene: Scene) -> np.ndarray:
    """Red fades along x and blue along y, as if lit from the upper left, so that a patch
    shows where it is; green is a random tint with blotches. (height, width, 3) uint8."""
    rng = np.random.default_rng(scene.backdrop)
    x, y = np.meshgrid(np.linspace(0, 1, scene.width), np.linspace(0, 1, scene.height))
    blotches = rng.uniform(-12, 12, (4, 4)).astype(np.float32)
    size = (scene.width, scene.height)
    uneven = np.asarray(Image.fromarray(blotches).resize(size, Image.Resampling.BICUBIC))
    channels = (235 - 150 * x, rng.uniform(150, 200) + uneven, 235 - 150 * y)
    return np.stack(channels, -1).clip(0, 255).astype(np.uint8)


def _draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, box: tuple[int, int, int, int]) -> None:
    fill = COLORS[thing.color]
    x1, y1, x2, y2 = box[0], box[1], box[2] - 1, box[3] - 1
    if thing.shape == "circle":
        pen.ellipse((x1, y1, x2, y2), fill=fill)
    elif thing.shape == "square":
        pen.rectangle((x1, y1, x2, y2), fill=fill)
    elif thing.shape == "triangle":
        pen.polygon([((x1 + x2) / 2, y1), (x1, y2), (x2, y2)], fill=fill)
    else:
        third_x, third_y = (x2 - x1) / 3, (y2 - y1) / 3
        pen.rectangle((x1 + third_x, y1, x2 - third_x, y2), fill=fill)
        pen.rectangle((x1, y1 + third_y, x2, y2 - third_y), fill=fill)
