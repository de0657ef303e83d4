"""Samples as tiles of a contact sheet: images with their boxes, and captions.

In: samples, and their queries if a processor is given. Then an image is drawn at the size the
processor gives it, and boxes where the query's frame says: what the model is trained on.
"""

from typing import TYPE_CHECKING

from PIL import Image

from ivgr.core.query import Query
from ivgr.core.sample import Sample
from ivgr.plotting.pictures import TILE, Tile, draw_boxes, shrink

if TYPE_CHECKING:  # it loads torchvision
    from ivgr.data.encode import QueryEncoder


def make_tile(sample: Sample, encoder: "QueryEncoder | None") -> Tile:
    """`sample` drawn; UserError names it if an image is broken or it cannot be encoded."""
    images = sample.open_images()
    query = encoder(sample) if encoder else None
    boxes, size = list(sample.boxes), images[0].size if images else (TILE, TILE)
    if encoder is not None and query is not None and query.image_grid_thw is not None:
        patch = encoder.processor.image_processor.patch_size
        size = (int(query.image_grid_thw[0, 2]) * patch, int(query.image_grid_thw[0, 1]) * patch)
        boxes = [query.frame.to_pixels(box, size) for box in query.boxes]
    pictures = [shrink(image) for image in images[1:]]
    if images:
        pictures.insert(0, _draw(images[0], size, boxes, sample.labels))
    return Tile(pictures, _caption(sample, query, size))


def _draw(image: Image.Image, size: tuple[int, int], boxes: list, labels: tuple[str, ...]) -> Image.Image:
    """`image` seen at `size` (as the processor resizes it) with boxes in pixels of that size."""
    picture = shrink(image, shape=size)
    draw_boxes(picture, boxes, size, labels)
    return picture


def _caption(sample: Sample, query: Query | None, size: tuple[int, int]) -> list[str]:
    lines = [f"{sample.id}", f"{sample.kind}, {sample.check}, {sample.source or 'no source'}"]
    lines += [f"Q: {sample.question}", f"A: {sample.answer}"]
    written = query.boxes if query else sample.boxes
    width, height = (query.frame.width, query.frame.height) if query else size
    if written:
        numbers = " ".join(f"[{','.join(f'{c:.0f}' for c in box)}]" for box in written)
        lines.append(f"{numbers} in {width:.0f} x {height:.0f}, image of {size[0]} x {size[1]}")
    return lines
