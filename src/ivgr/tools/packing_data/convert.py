"""A row of any of the formats → the fields of a `Sample` and references to its images.

Published iVGR rows: problem (with <image> markers), answer, images, datasource, question_type,
target_instances. All others: the fields of `Sample`, images under "image" or "images".
"""

import json
import re
from dataclasses import dataclass

from ivgr.core.printable import brief
from ivgr.data.answer_options import LETTERS, letter_options

PAIRED_SOURCES = ("treevgr",)
SINGLE_SOURCES = ("ours_",)
MATH_SOURCES = ("ours_mmk12", "ours_thinklite", "ours_virl", "ours_wemath_pro", "ours_wemath_std")
NUMBER_TYPES = ("stem_science", "chart_analysis")
MARKER = "<image>"
LONGEST_TEXT = 2**17  # characters: beyond every prompt
SHORT = "ABCDEFGHIJ"  # a list of up to ten may stand within a sentence; further letters are initials

_QUANTITY = re.compile(r"[0-9\\]")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)?(?:\.[0-9]+)?%?")
_MARK = re.compile(r"(?:^|[\s;,])\(?([A-Z])[).:]\s*(?=\S)")
_LETTER = re.compile(r"\(?([A-Z])\)?(?:[.:)]\s*\S.*)?\.?", re.DOTALL)
_SPECIAL = re.compile(r"<\|[a-z_]+\|>")


class Rejected(Exception):
    """A row that cannot be packed: "kind of fault: what exactly"."""


@dataclass(frozen=True)
class Draft:
    """fields of a sample without id and checks of the images; id is "" if the row has none;
    images are paths (relative to the image folder) or bytes; notes say what was left out."""

    id: str
    fields: dict
    images: tuple[str | bytes, ...]
    notes: tuple[str, ...] = ()


def convert_row(row: dict) -> Draft:
    """`row` as a draft; Rejected says what is wrong with it."""
    images = _images_of(row)
    question = _text(row, "question", "problem", "query")
    boxes, labels, notes = _boxes_of(row)
    fields = {
        "question": place_markers(question, len(images)),
        "answer": _text(row, "answer"),
        "kind": kind_of(row),
        "source": _text(row, "source", "datasource"),
        "boxes": boxes,
        "labels": labels,
        "reasoning": _strings(row.get("reasoning")),
        "options": _options_of(row, question),
    }
    fields["check"], fields["answer"] = _check_of(row, fields)
    for name in ("question", "answer", "source"):
        _check_text(name, fields[name])
    return Draft(_text(row, "id"), fields, images, notes)


def kind_of(row: dict) -> str:
    """The row's own kind; else by its data source; else paired if it has boxes."""
    source = row.get("datasource") or ""
    if row.get("kind"):
        return str(row["kind"])
    if source in PAIRED_SOURCES:
        return "paired"
    if str(source).startswith(SINGLE_SOURCES):
        return "single"
    given = _given(row, "boxes", "target_instances")
    entries = given if isinstance(given, list | tuple) else [given] if given else []
    return "single" if all(map(_is_empty, entries)) else "paired"


def place_markers(question: str, images: int) -> str:
    """`question` without the <image> markers before and after it; one in the middle of a
    sentence becomes "image 1", "image 2", … . Rejected if they are not as many as the images."""
    count = question.count(MARKER)
    if count not in (0, images):
        raise Rejected(f"image markers: {count} {MARKER} for {images} images")
    number = 0
    pieces = re.split(rf"({MARKER})", question.strip())
    while pieces and pieces[0].strip() in ("", MARKER):
        number += pieces.pop(0) == MARKER
    while pieces and pieces[-1].strip() in ("", MARKER):
        pieces.pop()
    for index, piece in enumerate(pieces):
        if piece == MARKER:
            number += 1
            pieces[index] = f"image {number}"
    return "".join(pieces).strip()


def read_options(question: str) -> dict[str, str]:
    """The options that `question` lists as "A. …", "(A) …" or "A: …", from A on without a gap;
    {} if there are not two."""
    marks: list[re.Match] = []
    for mark in _MARK.finditer(question):
        if mark[1] == LETTERS[len(marks) : len(marks) + 1]:
            marks.append(mark)
        elif mark[1] in SHORT:
            return {}
    if len(marks) < 2:
        return {}
    ends = [mark.start() for mark in marks[1:]] + [len(question)]
    texts = [question[mark.end() : end].partition("\n")[0] for mark, end in zip(marks, ends, strict=True)]
    return {mark[1]: text.strip(" \t\r;,") for mark, text in zip(marks, texts, strict=True)}


def _check_of(row: dict, fields: dict) -> tuple[str, str]:
    """The check and the answer as that check wants it: for a choice, the option's letter."""
    answer, options = fields["answer"], fields["options"]
    letter = _letter_of(answer, options)
    if options and not letter and row.get("options") and not row.get("check"):
        raise Rejected(f"answer: {brief(answer)} is none of its options {', '.join(options)}")
    check = row.get("check") or ("choice" if letter else "math" if _is_math(row, answer) else "text")
    return check, (letter or answer) if check == "choice" else answer


def _letter_of(answer: str, options: dict[str, str]) -> str:
    said = answer.strip().casefold()
    named = [letter for letter, text in options.items() if str(text).casefold() == said]
    written = _LETTER.fullmatch(answer.strip())
    letter = named[0] if named else written.group(1) if written else ""
    return letter if letter in options else ""


def _is_math(row: dict, answer: str) -> bool:
    """Whether the answer is checked as mathematics: its source or type is mathematical and it holds a digit
    or a command; or, for science and charts, it is a plain number."""
    kind, source = row.get("question_type"), row.get("datasource")
    if kind == "math" or source in MATH_SOURCES:
        return bool(_QUANTITY.search(answer))
    return kind in NUMBER_TYPES and bool(_NUMBER.fullmatch(answer.strip()) and _QUANTITY.search(answer))


def _images_of(row: dict) -> tuple[str | bytes, ...]:
    given = _given(row, "images", "image")
    many = given if isinstance(given, list | tuple) else [] if given is None else [given]
    return tuple(map(_reference, many))


def _reference(image: object) -> str | bytes:
    """A path, bytes, or the pair of both that HF datasets write."""
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if not isinstance(image, str | bytes) or not image:
        raise Rejected("missing image: the row names neither a path nor bytes")
    return image


def _boxes_of(row: dict) -> tuple[list, object, tuple[str, ...]]:
    """Boxes and labels, of the entries without a box neither, and whether there were such."""
    given, labels = _given(row, "boxes", "target_instances") or [], row.get("labels") or []
    if not isinstance(given, list | tuple):
        raise Rejected(f"bad box: {brief(given)} is no list of boxes")
    found = list(map(_box_of, given))
    boxes = [box for box in found if box is not None]
    if isinstance(labels, list | tuple) and len(labels) == len(found):
        labels = [label for label, box in zip(labels, found, strict=True) if box is not None]
    return boxes, labels, ("entry without a box left out",) * (len(boxes) < len(found))


def _box_of(entry: object) -> object:
    """The box of an entry of a list of boxes, None if it is empty."""
    if not isinstance(entry, dict):
        return entry
    if _is_empty(entry):
        return None
    if entry.get("bbox") is None:
        raise Rejected(
            f'bad box: no "bbox" among {brief(list(entry))}; give [x1, y1, x2, y2] in pixels of the upright '
            "image, whatever the frame of a model"
        )
    return entry["bbox"]


def _is_empty(entry: object) -> bool:
    """Whether it says that there is no box, as published rows do: null, or "bbox": null."""
    if not isinstance(entry, dict):
        return entry is None
    renamed = any(isinstance(value, list | tuple) for value in entry.values())
    return "bbox" in entry and entry["bbox"] is None and not renamed


def _options_of(row: dict, question: str) -> dict[str, str]:
    given = row.get("options")
    try:
        given = json.loads(given) if isinstance(given, str) else given
        if isinstance(given, list | tuple):
            return letter_options(given)
    except (ValueError, RecursionError) as error:
        raise Rejected(f"options: {brief(given)}: {error}; give a list, or texts by letter") from error
    return _strings(given) or read_options(question)


def _strings(given: object) -> dict:
    """An object without the nulls that a parquet's common struct brings in."""
    return {name: text for name, text in given.items() if text is not None} if isinstance(given, dict) else {}


def _given(row: dict, *names: str) -> object:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _text(row: dict, *names: str) -> str:
    """The first of `names` that holds something, numbers as text; "" if none does, or a NaN."""
    value = next((row[name] for name in names if row.get(name) not in (None, "")), "")
    if value != value:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Rejected(f"{names[0]}: {brief(value)} is no text")
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        raise Rejected(f"{names[0]}: {len(value)} characters, more than {LONGEST_TEXT}")
    return value if isinstance(value, str) else str(value)


def _check_text(name: str, text: str) -> None:
    special = _SPECIAL.search(text)
    if special:
        raise Rejected(f"special token: {name} holds {special[0]}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Rejected(f"{name}: holds half a surrogate pair") from error
