"""One entry of a shard: its schema, read and checked.

In: the files of one key, as WebDataset groups them ({"json": bytes, "jpg": bytes, …}).
Out: a `Sample`; images stay undecoded bytes until `open_images`.
"""

import json
from dataclasses import dataclass, field

from PIL import Image

from ivgr.core.boxes import is_box
from ivgr.core.images import open_images
from ivgr.core.printable import brief, in_line
from ivgr.core.rejection import RejectedSample

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
MOST_DIGITS = 9  # of an image's number
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
        """The images as RGB, turned upright; RejectedSample names the sample if one is broken."""
        return open_images(self.images, self.where)

    @property
    def where(self) -> str:
        """The words that messages about the sample begin with."""
        return f"sample {in_line(self.id, 80)}"


def read_sample(entry: dict) -> Sample:
    """The `Sample` of one group of files, checked; RejectedSample names shard, key and field."""
    key = in_line(entry["__key__"], 80)
    where = f"{entry.get('__url__', 'shard')}: {key}"
    if "json" not in entry:
        raise RejectedSample(f"{where}: {key}.json is missing", "json: missing")
    try:
        fields = json.loads(entry["json"])
    except (ValueError, RecursionError) as error:
        raise RejectedSample(f"{where}.json: not valid JSON ({error})", "json: invalid") from error
    if not isinstance(fields, dict):
        raise RejectedSample(f"{where}.json: must be an object", "json: not an object")
    return parse_sample(fields, _images_of(entry, where), where)


def parse_sample(fields: dict, images: tuple[bytes, ...], where: str) -> Sample:
    """A `Sample` from the fields of its JSON; RejectedSample begins with `where` and knows id
    and kind if they are sound."""
    fields = {"kind": "paired", "check": "text"} | fields
    try:
        return _parse(fields, images, where)
    except RejectedSample as error:
        error.id = fields["id"] if isinstance(fields.get("id"), str) else ""
        error.kind = fields["kind"] if fields["kind"] in KINDS else ""
        raise


def _parse(fields: dict, images: tuple[bytes, ...], where: str) -> Sample:
    for name in ("id", "question", "answer"):
        _check_said(fields.get(name), name, where)
    for name, allowed in (("kind", KINDS), ("check", CHECKS)):
        if fields[name] not in allowed:
            raise RejectedSample(
                f'{where}: "{name}" is {brief(fields[name])}, must be one of {", ".join(allowed)}',
                f"{name}: unknown",
            )
    if not _is_text(fields.get("source", "")):
        raise RejectedSample(f'{where}: "source" must be a string', "source: malformed")
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


def _check_said(text: object, name: str, where: str) -> None:
    if _is_text(text) and text.strip():
        return
    empty = text is None or (isinstance(text, str) and not text.strip())
    reason = f"{name}: {'empty' if empty else 'malformed'}"
    raise RejectedSample(f'{where}: "{name}" must be a non-empty string of valid characters', reason)


def _is_text(value: object) -> bool:
    """A string that UTF-8 can hold: JSON may smuggle in half a surrogate pair."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_boxes(fields: dict, images: tuple[bytes, ...], where: str) -> tuple[tuple[float, ...], ...]:
    given = fields.get("boxes", [])
    if not isinstance(given, list | tuple):
        raise RejectedSample(f'{where}: "boxes" must be a list of [x1, y1, x2, y2]', "box: malformed")
    for box in given:
        if not is_box(box):
            raise RejectedSample(
                f'{where}: "boxes" holds {brief(box)}, must be [x1, y1, x2, y2] with x1<x2, y1<y2',
                "box: malformed",
            )
    if given and not images:
        raise RejectedSample(
            f"{where}: has boxes but no image; add {IMAGE_SUFFIXES[0]} beside the JSON", "image: missing"
        )
    if fields["kind"] == "paired" and not given:
        raise RejectedSample(
            f'{where}: a paired sample needs "boxes"; without them its "kind" is "single"', "box: missing"
        )
    return tuple(map(tuple, given))


def _read_labels(fields: dict, boxes: int, where: str) -> tuple[str, ...]:
    given = fields.get("labels", [])
    if not isinstance(given, list | tuple) or not all(map(_is_text, given)):
        raise RejectedSample(f'{where}: "labels" must be a list of strings', "labels: malformed")
    if given and len(given) != boxes:
        raise RejectedSample(
            f'{where}: "labels" holds {len(given)} for {boxes} boxes; one each, or none at all',
            "labels: malformed",
        )
    return tuple(given)


def _read_texts(fields: dict, name: str, where: str) -> dict[str, str]:
    given = fields.get(name, {})
    if not isinstance(given, dict) or not all(map(_is_text, [*given, *given.values()])):
        raise RejectedSample(f'{where}: "{name}" must be an object of strings', f"{name}: malformed")
    return given


def _read_options(fields: dict, where: str) -> dict[str, str]:
    options = _read_texts(fields, "options", where)
    letter = fields["answer"].strip(" ().").casefold()
    known = {name.casefold() for name in options} | {text.casefold() for text in options.values()}
    if fields["check"] == "choice" and options and not {letter, fields["answer"].casefold()} & known:
        raise RejectedSample(
            f'{where}: "answer" is {brief(fields["answer"])}, which is none of its "options"',
            "answer: not an option",
        )
    return options


def _images_of(entry: dict, where: str) -> tuple[bytes, ...]:
    """KEY.jpg, or KEY.0.jpg, KEY.1.jpg, … in numeric order."""
    found: dict[int, bytes] = {}
    for suffix, data in entry.items():
        index, _, extension = suffix.rpartition(".")
        if extension in IMAGE_SUFFIXES and (index == "" or index.isdecimal()):
            if len(index) > MOST_DIGITS:
                raise RejectedSample(
                    f"{where}: the number {in_line(index, 20)} of an image has more than {MOST_DIGITS} "
                    "digits; renumber it",
                    "image: misnumbered",
                )
            if int(index or 0) in found:
                raise RejectedSample(
                    f"{where}: two images stand for number {index or 0}; remove or renumber one",
                    "image: numbered twice",
                )
            found[int(index or 0)] = data
    return tuple(found[index] for index in sorted(found))
