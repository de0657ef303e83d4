"""One entry of a shard: its schema, read and checked.

In: the files of one key, as WebDataset groups them ({"json": bytes, "jpg": bytes, …}).
Out: a `Sample`; images stay undecoded bytes until `open_images`.
"""

import io
import json
import math
from dataclasses import dataclass, field

from PIL import Image, ImageOps

from ivgr.errors import UserError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
KINDS = ("paired", "single")
CHECKS = ("text", "choice", "math")


@dataclass(frozen=True)
class Sample:
    """A question about zero or more images.

    boxes are gold boxes (x1, y1, x2, y2) in pixels of the first image as stored; labels
    name them, one each or none at all; reasoning holds cold-start texts by stream.
    """

    id: str
    question: str
    answer: str
    kind: str = "paired"
    check: str = "text"
    source: str = ""
    boxes: tuple[tuple[float, ...], ...] = ()
    labels: tuple[str, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    reasoning: dict[str, str] = field(default_factory=dict)
    images: tuple[bytes, ...] = ()

    def open_images(self) -> list[Image.Image]:
        """The images as RGB, turned upright; UserError names the sample if one is broken."""
        return [self._open(index, data) for index, data in enumerate(self.images)]

    def _open(self, index: int, data: bytes) -> Image.Image:
        try:
            return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"sample {self.id}: image {index} cannot be read ({error})") from error


def read_sample(entry: dict) -> Sample:
    """The `Sample` of one group of files, checked; UserError names shard, key and field."""
    where = f"{entry.get('__url__', 'shard')}: {entry['__key__']}"
    if "json" not in entry:
        raise UserError(f"{where}: {entry['__key__']}.json is missing")
    try:
        fields = json.loads(entry["json"])
    except ValueError as error:
        raise UserError(f"{where}.json: not valid JSON ({error})") from error
    if not isinstance(fields, dict):
        raise UserError(f"{where}.json: must be an object")
    return parse_sample(fields, _images_of(entry), where)


def parse_sample(fields: dict, images: tuple[bytes, ...], where: str) -> Sample:
    """A `Sample` from the fields of its JSON; UserError begins with `where`."""
    for name in ("id", "question", "answer"):
        if not isinstance(fields.get(name), str) or not fields[name].strip():
            raise UserError(f'{where}: "{name}" must be a non-empty string')
    for name, allowed in (("kind", KINDS), ("check", CHECKS)):
        if fields.get(name, allowed[0]) not in allowed:
            raise UserError(f'{where}: "{name}" is {fields[name]!r}, must be one of {", ".join(allowed)}')
    boxes = tuple(_read_box(box, where) for box in fields.get("boxes") or ())
    if boxes and not images:
        raise UserError(f"{where}: has boxes but no image; add {IMAGE_SUFFIXES[0]} beside the JSON")
    if fields.get("kind", "paired") == "paired" and not boxes:
        raise UserError(f'{where}: a paired sample needs "boxes"; without them its "kind" is "single"')
    labels = tuple(fields.get("labels") or ())
    if labels and len(labels) != len(boxes):
        raise UserError(f'{where}: {len(labels)} "labels" for {len(boxes)} "boxes"')
    optional = ("kind", "check", "source", "options", "reasoning")
    given = {name: fields[name] for name in optional if fields.get(name)}
    core = {name: fields[name] for name in ("id", "question", "answer")}
    return Sample(**core, **given, boxes=boxes, labels=labels, images=images)


def _read_box(box: object, where: str) -> tuple[float, ...]:
    numbers = isinstance(box, list | tuple) and len(box) == 4
    numbers = numbers and all(isinstance(c, int | float) and math.isfinite(c) for c in box)
    if not numbers or not (box[0] < box[2] and box[1] < box[3]):
        raise UserError(f'{where}: "boxes" holds {box!r}, must be [x1, y1, x2, y2] with x1<x2, y1<y2')
    return tuple(box)


def _images_of(entry: dict) -> tuple[bytes, ...]:
    """KEY.jpg, or KEY.0.jpg, KEY.1.jpg, … in numeric order."""
    found = {}
    for suffix, data in entry.items():
        index, _, extension = suffix.rpartition(".")
        if extension in IMAGE_SUFFIXES and (index == "" or index.isdigit()):
            found[int(index or 0)] = data
    return tuple(found[index] for index in sorted(found))
