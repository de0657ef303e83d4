"""A contact sheet: samples with their boxes and questions drawn, as HTML or PNG.

In: samples, and their queries if a processor is given. Then an image is drawn at the size the
processor gives it, and boxes where the query's frame says: what the model is trained on.
"""

import base64
import html
import io
import textwrap
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ivgr.data.encode import QueryEncoder
from ivgr.data.sample import Sample
from ivgr.errors import UserError
from ivgr.query import Query

TILE, COLUMNS, TEXT, LINES = 360, 4, 14, 7
COLORS = ("#14a03c", "#dc2828", "#1e5ad2", "#e69600", "#8c28b4", "#00969b")
STYLE = (
    "body{font:14px sans-serif;margin:16px} main{display:flex;flex-wrap:wrap;gap:16px} "
    "figure{margin:0;width:360px} img{display:block;max-width:100%} code{font-size:12px} "
    "figcaption{overflow-wrap:anywhere;white-space:pre-line}"
)


@dataclass(frozen=True)
class Tile:
    """pictures of at most TILE x TILE pixels, boxes drawn on the first; lines of the caption."""

    pictures: list[Image.Image]
    lines: list[str]


def make_tile(sample: Sample, encoder: QueryEncoder | None) -> Tile:
    """`sample` drawn; UserError names it if an image is broken or it cannot be encoded."""
    images = sample.open_images()
    query = encoder(sample) if encoder else None
    boxes, size = list(sample.boxes), images[0].size if images else (TILE, TILE)
    if query is not None and images:
        patch = encoder.processor.image_processor.patch_size
        size = (int(query.image_grid_thw[0, 2]) * patch, int(query.image_grid_thw[0, 1]) * patch)
        boxes = [query.frame.to_pixels(box, size) for box in query.boxes]
    pictures = [_shrink(image, image.size) for image in images[1:]]
    if images:
        pictures.insert(0, _draw(images[0], size, boxes, sample.labels))
    return Tile(pictures, _caption(sample, query, size))


def _draw(image: Image.Image, size: tuple[int, int], boxes: list, labels: tuple[str, ...]) -> Image.Image:
    """`image` seen at `size` (as the processor resizes it) with boxes in pixels of that size."""
    picture = _shrink(image, size)
    x, y = picture.width / size[0], picture.height / size[1]
    pen = ImageDraw.Draw(picture)
    for index, box in enumerate(boxes):
        color = COLORS[index % len(COLORS)]
        x1, y1, x2, y2 = box[0] * x, box[1] * y, box[2] * x - 1, box[3] * y - 1
        outline = (x1, y1, max(x2, x1), max(y2, y1))
        pen.rectangle(outline, None, "white", 4)
        pen.rectangle(outline, None, color, 2)
        if labels:
            font = ImageFont.load_default(TEXT)
            pen.text((x1 + 4, y1 + 2), labels[index], color, font, stroke_width=2, stroke_fill="white")
    return picture


def _shrink(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """`image` in the shape of `size`, its longer side TILE pixels."""
    scale = TILE / max(size)
    return image.resize((max(1, round(size[0] * scale)), max(1, round(size[1] * scale))))


def _caption(sample: Sample, query: Query | None, size: tuple[int, int]) -> list[str]:
    lines = [f"{sample.id}", f"{sample.kind}, {sample.check}, {sample.source or 'no source'}"]
    lines += [f"Q: {sample.question}", f"A: {sample.answer}"]
    written = query.boxes if query else sample.boxes
    width, height = (query.frame.width, query.frame.height) if query else size
    if written:
        numbers = " ".join(f"[{','.join(f'{c:.0f}' for c in box)}]" for box in written)
        lines.append(f"{numbers} in {width:.0f} x {height:.0f}, image of {size[0]} x {size[1]}")
    return lines


def write_sheet(tiles: list[Tile], path: Path) -> None:
    """As HTML that needs no other file, or as PNG; UserError for another suffix."""
    if path.suffix not in WRITERS:
        raise UserError(f"inspect --out: {path} must end in {' or '.join(WRITERS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[path.suffix](tiles, path)


def _write_html(tiles: list[Tile], path: Path) -> None:
    figures = []
    for tile in tiles:
        images = "".join(f'<img src="data:image/png;base64,{_base64(p)}">' for p in tile.pictures)
        first, *rest = map(html.escape, tile.lines)
        caption = "\n".join([f"<code>{first}</code>", *rest])
        figures.append(f"<figure>{images}<figcaption>{caption}</figcaption></figure>")
    head = (
        f'<!doctype html><meta charset="utf-8"><title>{html.escape(path.stem)}</title><style>{STYLE}</style>'
    )
    path.write_text(f"{head}<main>{''.join(figures)}</main>", encoding="utf-8", errors="backslashreplace")


def _base64(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _write_png(tiles: list[Tile], path: Path) -> None:
    """COLUMNS tiles a row; of several images the first, the rest as a number in the caption."""
    height = TILE + LINES * (TEXT + 4) + 12
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (min(len(tiles), COLUMNS) * (TILE + 12), max(rows, 1) * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    for index, tile in enumerate(tiles):
        x, y = index % COLUMNS * (TILE + 12), index // COLUMNS * height
        if tile.pictures:
            sheet.paste(tile.pictures[0], (x, y))
        more = [f"and {len(tile.pictures) - 1} more images"] if len(tile.pictures) > 1 else []
        lines = [part for line in tile.lines + more for part in textwrap.wrap(line, 48)[:2]]
        pen.multiline_text((x, y + TILE + 4), "\n".join(lines[:LINES]), "black", font)
    sheet.save(path, "PNG")


WRITERS = {".html": _write_html, ".png": _write_png}
