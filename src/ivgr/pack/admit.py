"""One row → a checked `Sample`, or the reason why not. Pure: rows can be admitted in parallel."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ivgr.data.sample import Sample, parse_sample
from ivgr.errors import UserError
from ivgr.pack.convert import Draft, Rejected, convert_row
from ivgr.pack.images import MOST_PIXELS, Fitted, fetch_image, fit_image
from ivgr.pack.rows import Row

Box = tuple[float, ...]


@dataclass(frozen=True)
class Verdict:
    """sample is None where reason is not ""; notes are changes that did not stop the row."""

    position: str
    id: str
    sample: Sample | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()


def admit_row(row: Row, folder: Path, most_pixels: int = MOST_PIXELS) -> Verdict:
    """`row` as a sample with its images from `folder`, shrunk to `most_pixels`."""
    name = row.fields.get("id")
    name = name if isinstance(name, str) else str(name or "")
    try:
        if row.broken:
            raise Rejected(f"unreadable row: {row.broken}")
        draft = convert_row(row.fields)
        raw = [fetch_image(reference, folder) for reference in draft.images]
        name = draft.id or content_id(draft, raw)
        images = [fit_image(data, most_pixels) for data in raw]
        boxes, clipped = _fit_boxes(draft.fields["boxes"], images)
        sample = _parse(draft.fields | {"id": name, "boxes": boxes}, images)
    except Rejected as error:
        return Verdict(row.position, name, reason=str(error))
    notes = [image.change for image in images if image.change] + ["box clipped to its image"] * clipped
    return Verdict(row.position, name, sample, notes=tuple(notes))


def content_id(draft: Draft, images: Sequence[bytes]) -> str:
    """A hash of question, answer, boxes and the bytes of the images as they came: the same for
    the same content wherever it stands, however large it is packed."""
    boxes = [[float(c) if _is_number(c) else str(c) for c in _list(box)] for box in draft.fields["boxes"]]
    hashes = [hashlib.sha256(data).hexdigest() for data in images]
    content = [draft.fields["question"], draft.fields["answer"], boxes, hashes]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


def clip_box(box: object, size: tuple[int, int]) -> Box:
    """`box` within an image of `size` (width, height), its numbers untouched where they lie
    inside. Rejected unless it is four finite numbers, x1 < x2, y1 < y2, centre inside."""
    c = _list(box)
    if len(c) != 4 or not all(map(_is_number, c)) or c[0] >= c[2] or c[1] >= c[3]:
        raise Rejected(f"bad box: {str(box)[:80]} is not [x1, y1, x2, y2] with x1 < x2 and y1 < y2")
    width, height = size
    if not (0 <= c[0] / 2 + c[2] / 2 <= width and 0 <= c[1] / 2 + c[3] / 2 <= height):
        raise Rejected(f"box outside: the centre of {str(box)[:80]} is not in the {width} x {height} image")
    return max(c[0], 0), max(c[1], 0), min(c[2], width), min(c[3], height)


def _fit_boxes(given: Sequence, images: list[Fitted]) -> tuple[list[Box], int]:
    """The boxes in pixels of the packed first image, and how many had to be clipped."""
    if not given or not images:
        return list(given), 0
    boxes = [clip_box(box, images[0].size) for box in given]
    clipped = sum(tuple(_list(old)) != new for old, new in zip(given, boxes, strict=True))
    x, y = images[0].scale
    if (x, y) == (1, 1):
        return boxes, clipped
    return [(b[0] * x, b[1] * y, b[2] * x, b[3] * y) for b in boxes], clipped


def _parse(fields: dict, images: list[Fitted]) -> Sample:
    try:
        return parse_sample(fields, tuple(image.data for image in images), "row")
    except UserError as error:
        raise Rejected(f"not a sample: {str(error).removeprefix('row: ')}") from error


def _list(box: object) -> list:
    return list(box) if isinstance(box, list | tuple) else []


def _is_number(value: object) -> bool:
    """Finite and of a size that a float holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
