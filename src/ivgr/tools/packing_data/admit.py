"""One row → a checked `Sample`, or the reason why not. Pure: rows can be admitted in parallel."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ivgr.core.boxes import Box, clip_box, is_box, is_coordinate
from ivgr.core.errors import UserError
from ivgr.core.images import check_pixels
from ivgr.core.printable import brief, in_line
from ivgr.core.rejection import RejectedSample
from ivgr.core.sample import Sample, parse_sample
from ivgr.tools.packing_data.convert import Draft, Rejected, convert_row
from ivgr.tools.packing_data.source_images import MOST_PIXELS, Fitted, fetch_image, fit_image
from ivgr.tools.packing_data.source_rows import Row

LONGEST = 300  # characters of a reason


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
        check_pixels(raw, "row")
        name = draft.id or content_id(draft, raw)
        images = [fit_image(data, most_pixels) for data in raw]
        boxes, clipped = _fit_boxes(draft.fields["boxes"], images)
        sample = _parse(draft.fields | {"id": name, "boxes": boxes}, images)
    except Rejected as error:
        return Verdict(row.position, name, reason=in_line(error, LONGEST))
    except RejectedSample as error:
        kind = error.reason.replace(":", "")
        return Verdict(row.position, name, reason=in_line(f"{kind}: {_without_place(error)}", LONGEST))
    changes = [image.change for image in images if image.change]
    notes = [*changes, *draft.notes, *["box clipped to its image"] * clipped]
    return Verdict(row.position, name, sample, notes=tuple(notes))


def content_id(draft: Draft, images: Sequence[bytes]) -> str:
    """A hash of question, answer, boxes and the bytes of the images as they came: the same for
    the same content wherever it stands, however large it is packed."""
    boxes = [
        [float(c) if is_coordinate(c) else str(c) for c in (box if isinstance(box, list | tuple) else ())]
        for box in draft.fields["boxes"]
    ]
    hashes = [hashlib.sha256(data).hexdigest() for data in images]
    content = [draft.fields["question"], draft.fields["answer"], boxes, hashes]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


def _fit_boxes(given: Sequence, images: list[Fitted]) -> tuple[list[Box], bool]:
    """The boxes in pixels of the packed first image, and whether any had to be clipped."""
    if not given or not images:
        return list(given), False
    for box in given:
        if not is_box(box):
            raise Rejected(f"bad box: {brief(box)} is not [x1, y1, x2, y2] with x1 < x2 and y1 < y2")
    boxes = [clip_box(box, images[0].size, "row") for box in given]
    clipped = any(tuple(old) != new for old, new in zip(given, boxes, strict=True))
    x, y = images[0].scale
    if (x, y) != (1, 1):
        shrunk = round(images[0].size[0] * x), round(images[0].size[1] * y)
        boxes = [clip_box((b[0] * x, b[1] * y, b[2] * x, b[3] * y), shrunk, "row") for b in boxes]
    return boxes, clipped


def _parse(fields: dict, images: list[Fitted]) -> Sample:
    try:
        return parse_sample(fields, tuple(image.data for image in images), "row")
    except UserError as error:
        raise Rejected(f"not a sample: {_without_place(error)}") from error


def _without_place(error: UserError) -> str:
    return str(error).removeprefix("row: ")
