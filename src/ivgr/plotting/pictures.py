"""Pictures for people: boxes drawn on an image, and contact sheets as HTML or PNG.

In: PIL images and boxes in pixels. Out: pictures; those of a logger are in `ivgr.plotting.boxed_picture`.
"""

import base64
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image, ImageDraw, ImageFont

from ivgr.core.atomic_files import file_to_write
from ivgr.core.errors import UserError
from ivgr.core.printable import as_html, printable

TILE, COLUMNS, TEXT, LINES = 360, 4, 14, 7
GOLD = "#14a03c"
COLORS = (GOLD, "#dc2828", "#1e5ad2", "#e69600", "#8c28b4", "#00969b")
STYLE = (
    "body{font:14px sans-serif;margin:16px} main{display:flex;flex-wrap:wrap;gap:16px} "
    "figure{margin:0;width:360px} img{display:block;max-width:100%} code{font-size:12px} "
    "figcaption{overflow-wrap:anywhere;white-space:pre-line}"
)


def shrink(image: Image.Image, side: float = TILE, shape: tuple[int, int] | None = None) -> Image.Image:
    """`image`, its longer side `side` pixels, in the proportions of `shape` (width, height;
    default: its own)."""
    width, height = shape or image.size
    scale = side / max(width, height)
    return image.resize((max(1, round(width * scale)), max(1, round(height * scale))))


def place_box(
    box: Sequence[float], size: tuple[int, int], shown: tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """`box`, in pixels of an image of `size` (width, height), on a picture of it of size `shown`, cut off
    where it leaves it; None if it lies wholly outside."""
    x, y = shown[0] / size[0], shown[1] / size[1]
    x1, y1 = max(box[0] * x, 0), max(box[1] * y, 0)
    x2, y2 = min(box[2] * x, shown[0]) - 1, min(box[3] * y, shown[1]) - 1
    if x1 >= shown[0] or y1 >= shown[1] or x2 <= -1 or y2 <= -1:
        return None
    return x1, y1, max(x2, x1), max(y2, y1)


def draw_boxes(
    picture: Image.Image,
    boxes: Sequence[Sequence[float]],
    size: tuple[int, int],
    labels: Sequence[str] = (),
    colors: Sequence[str] = COLORS,
    width: int = 2,
) -> None:
    """Draws `boxes`, in pixels of an image of `size` (width, height), on `picture`, which shows that
    image at any size. Colours take turns; what lies outside is cut off, a box wholly outside
    left out; labels, one a box, stand in the upper left corner."""
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(TEXT * width / 2)
    for index, box in enumerate(boxes):
        if (outline := place_box(box, size, picture.size)) is None:
            continue
        x1, y1, *_ = outline
        color = colors[index % len(colors)]
        pen.rectangle(outline, None, "white", 2 * width)
        pen.rectangle(outline, None, color, width)
        if labels:
            corner = (x1 + 2 * width, y1 + width)
            label = printable(labels[index])
            pen.text(corner, label, color, font, stroke_width=width, stroke_fill="white")


@dataclass(frozen=True)
class Tile:
    """One entry of a contact sheet: pictures of at most TILE x TILE pixels; lines of the caption."""

    pictures: list[Image.Image]
    lines: list[str]


def write_sheet(tiles: list[Tile], path: Path) -> None:
    """Writes the sheet as HTML that needs no other file, or as PNG; UserError for another suffix."""
    if path.suffix not in WRITERS:
        raise UserError(f"{path}: a contact sheet must end in {' or '.join(WRITERS)}")
    with file_to_write(path) as file:
        WRITERS[path.suffix](tiles, path.stem, file)


def _write_html(tiles: list[Tile], title: str, file: IO[bytes]) -> None:
    figures = []
    for tile in tiles:
        images = "".join(f'<img src="data:image/png;base64,{_base64(p)}">' for p in tile.pictures)
        first, *rest = map(as_html, tile.lines)
        caption = "\n".join([f"<code>{first}</code>", *rest])
        figures.append(f"<figure>{images}<figcaption>{caption}</figcaption></figure>")
    head = f'<!doctype html><meta charset="utf-8"><title>{as_html(title)}</title><style>{STYLE}</style>'
    file.write(f"{head}<main>{''.join(figures)}</main>".encode(errors="backslashreplace"))


def _base64(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _write_png(tiles: list[Tile], _: str, file: IO[bytes]) -> None:
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
        lines = [part for line in tile.lines + more for part in textwrap.wrap(printable(line), 48)[:2]]
        pen.multiline_text((x, y + TILE + 4), "\n".join(lines[:LINES]), "black", font)
    sheet.save(file, "PNG")


WRITERS = {".html": _write_html, ".png": _write_png}
