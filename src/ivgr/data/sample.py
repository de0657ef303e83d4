"""One entry of a shard: its schema, read and checked.

In: the files of one key, as WebDataset groups them ({"json": bytes, "jpg": bytes, …}).
Out: a `Sample`; images stay undecoded bytes until `open_images`.
"""

import io
import json
from dataclasses import dataclass, field

from PIL import Image, ImageOps

from ivgr.errors import UserError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
KINDS = ("paired", "single")
CHECKS = ("text", "choice", "math")


@dataclass(frozen=True)
class Sample:
    """A question about zero or more images.

    boxes are gold boxes (x1, y1, x2, y2) in pixels of the first image, upright; labels
    name them, one each or none at all; reasoning holds cold-start texts by stream, their
    boxes in thousandths of the image.
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
            reason = type(error).__name__
            raise UserError(
                f"sample {self.id}: image {index} cannot be read ({reason}); replace or remove it"
            ) from error


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
    return parse_sample(fields, _images_of(entry, where), where)


def parse_sample(fields: dict, images: tuple[bytes, ...], where: str) -> Sample:
    """A `Sample` from the fields of its JSON; UserError begins with `where`."""
    fields = {"kind": "paired", "check": "text"} | fields
    for name in ("id", "question", "answer"):
        if not isinstance(fields.get(name), str) or not fields[name].strip():
            raise UserError(f'{where}: "{name}" must be a non-empty string')
    for name, allowed in (("kind", KINDS), ("check", CHECKS)):
        if fields[name] not in allowed:
            raise UserError(f'{where}: "{name}" is {fields[name]!r}, must be one of {", ".join(allowed)}')
    if not isinstance(fields.get("source", ""), str):
        raise UserError(f'{where}: "source" must be a string')
    boxes = _read_boxes(fields, images, where)
    return Sample(
        id=fields["id"],
        question=fields["question"],
        answer=fields["answer"],
        kind=fields["kind"],
        check=fields["check"],
        source=fields.get("source", ""),
        boxes=boxes,
        labels=_read_labels(fields, len(boxes), where),
        options=_read_options(fields, where),
        reasoning=_read_texts(fields, "reasoning", where),
        images=images,
    )


def _read_boxes(fields: dict, images: tuple[bytes, ...], where: str) -> tuple[tuple[float, ...], ...]:
    given = fields.get("boxes", [])
    if not isinstance(given, list | tuple):
        raise UserError(f'{where}: "boxes" must be a list of [x1, y1, x2, y2]')
    for box in given:
        if not _is_box(box):
            raise UserError(f'{where}: "boxes" holds {box!r}, must be [x1, y1, x2, y2] with x1<x2, y1<y2')
    if given and not images:
        raise UserError(f"{where}: has boxes but no image; add {IMAGE_SUFFIXES[0]} beside the JSON")
    if fields["kind"] == "paired" and not given:
        raise UserError(f'{where}: a paired sample needs "boxes"; without them its "kind" is "single"')
    return tuple(map(tuple, given))


def _is_box(box: object) -> bool:
    """Four finite numbers, x1 < x2 and y1 < y2."""
    if not isinstance(box, list | tuple) or len(box) != 4:
        return False
    if not all(isinstance(c, int | float) and not isinstance(c, bool) and abs(c) < 1e9 for c in box):
        return False
    return box[0] < box[2] and box[1] < box[3]


def _read_labels(fields: dict, boxes: int, where: str) -> tuple[str, ...]:
    given = fields.get("labels", [])
    if not isinstance(given, list | tuple) or not all(isinstance(label, str) for label in given):
        raise UserError(f'{where}: "labels" must be a list of strings')
    if given and len(given) != boxes:
        raise UserError(f'{where}: "labels" holds {len(given)} for {boxes} boxes; one each, or none at all')
    return tuple(given)


def _read_texts(fields: dict, name: str, where: str) -> dict[str, str]:
    given = fields.get(name, {})
    if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
        raise UserError(f'{where}: "{name}" must be an object of strings')
    return given


def _read_options(fields: dict, where: str) -> dict[str, str]:
    options = _read_texts(fields, "options", where)
    letter = fields["answer"].strip(" ().").casefold()
    known = {name.casefold() for name in options} | {text.casefold() for text in options.values()}
    if fields["check"] == "choice" and options and not {letter, fields["answer"].casefold()} & known:
        raise UserError(f'{where}: "answer" is {fields["answer"]!r}, which is none of its "options"')
    return options


def _images_of(entry: dict, where: str) -> tuple[bytes, ...]:
    """KEY.jpg, or KEY.0.jpg, KEY.1.jpg, … in numeric order."""
    found: dict[int, bytes] = {}
    for suffix, data in entry.items():
        index, _, extension = suffix.rpartition(".")
        if extension in IMAGE_SUFFIXES and (index == "" or index.isdecimal()):
            if int(index or 0) in found:
                raise UserError(f"{where}: two images stand for number {index or 0}; remove or renumber one")
            found[int(index or 0)] = data
    return tuple(found[index] for index in sorted(found))
