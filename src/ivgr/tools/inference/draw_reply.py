"""A reply as a picture: its boxes on the image, or a contact sheet of all that was looked at."""

from collections.abc import Sequence

from PIL import Image

from ivgr.core.boxes import Box
from ivgr.plotting.pictures import Tile, draw_boxes, shrink
from ivgr.tools.inference.modes import Reply

SMALLEST, LINE = 480, 300


def draw_reply(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy of `image` with `boxes`, in its pixels, numbered from 1. An image whose longer side is
    less than SMALLEST pixels is enlarged to that."""
    longest = max(image.size)
    picture = image.copy() if longest >= SMALLEST else shrink(image, SMALLEST)
    numbers = [str(n + 1) for n in range(len(boxes))]
    draw_boxes(picture, boxes, image.size, numbers, width=max(2, longest // LINE))
    return picture


def lay_out(images: Sequence[Image.Image], question: str, reply: Reply) -> list[Tile]:
    """A tile for each original image, boxes on the first, and for each crop."""
    first = shrink(images[0])
    draw_boxes(first, reply.boxes, images[0].size, [str(n + 1) for n in range(len(reply.boxes))])
    shown = [first, *map(shrink, images[1:])]
    tiles = [
        Tile([picture], [_say_size(f"image {number}", image)])
        for number, (picture, image) in enumerate(zip(shown, images, strict=True), 1)
    ]
    tiles[0].lines.extend([f"Q: {question}", f"A: {reply.answer}", *reply.notes])
    for name, rectangle in zip(name_crops(reply), reply.crops, strict=True):
        crop = images[0].crop(rectangle)
        tiles.append(Tile([shrink(crop)], [_say_size(name, crop), str(list(rectangle))]))
    return tiles


def name_crops(reply: Reply) -> list[str]:
    """Returns the name of each crop."""
    last = len(reply.crops)
    return [f"crop {n}" if n < max(last, 2) else "around all boxes" for n in range(1, last + 1)]


def _say_size(name: str, image: Image.Image) -> str:
    return f"{name}, {image.width} x {image.height}"
