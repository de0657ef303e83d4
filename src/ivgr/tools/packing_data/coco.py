"""COCO-style detections → questions whose answers can be computed from the boxes.

In: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "category_id", "bbox": [x, y,
w, h]}], "categories": [{"id", "name"}]}. Out: rows as of a JSONL. What is asked, and in which
words, depends on the image's file name and the category alone, so it outlives filtering.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ivgr.core.boxes import grid_cell, is_coordinate
from ivgr.core.printable import brief
from ivgr.core.seeding import derive_seed

Found = dict[str, list[list[float]]]
Asked = tuple[dict, str]

COUNT = (
    "How many instances of {a} are there in the image?",
    "Count every {a} you can see. How many are there?",
    "What is the number of objects of the kind {a} in this picture?",
)
EXISTS = (
    "Is there any {a} in the image? Answer yes or no.",
    "Does this picture show at least one {a}? Answer yes or no.",
    "Can you find a {a} here? Answer yes or no.",
)
WHERE = (
    "In which part of the image is the {a}? Answer upper, middle or lower, then left, center or right.",
    "Where is the {a}? Name its row (upper, middle, lower), then its column (left, center, right).",
)
SIDE = (
    "Is the {a} left or right of the {b}?",
    "On which side of the {b} is the {a}, left or right?",
)
MARGIN = 0.05


def is_coco(content: object) -> bool:
    names = ("images", "annotations", "categories")
    return isinstance(content, dict) and all(isinstance(content.get(name), list) for name in names)


def ask_coco(content: dict) -> Iterator[Asked]:
    """Yields (fields, "") for each question, up to five per image, and ({}, reason) for each annotation
    or image that cannot be used; a category with one such, or with a crowd, is not asked about
    in that image."""
    named = ((key, entry.get("name")) for key, entry in _by_id(content["categories"]))
    names = {key: name for key, name in named if isinstance(name, str)}
    images = dict(_by_id(content["images"]))
    found: dict[str, Found] = defaultdict(lambda: defaultdict(list))
    unsure: dict[str, set[str]] = defaultdict(set)
    for key, entry in _by_id(content["annotations"]):
        image, name = str(entry.get("image_id")), names.get(str(entry.get("category_id")))
        reason = _why_unusable(entry, image in images, name)
        if reason:
            yield {}, f"annotation {key}: {reason}"
        if name is None:
            continue
        if reason or entry.get("iscrowd"):
            unsure[image].add(name)
        else:
            x, y, width, height = entry["bbox"]
            found[image][name].append([x, y, x + width, y + height])
    known = sorted(set(names.values()))
    for key, image in images.items():
        if not isinstance(image.get("file_name"), str):
            yield {}, f"image {key} has no file_name"
            continue
        boxes = {name: boxes for name, boxes in found.pop(key, {}).items() if name not in unsure[key]}
        absent = [name for name in known if name not in boxes and name not in unsure[key]]
        yield from ((fields, "") for fields in _ask_image(image, boxes, absent))


def _by_id(entries: list) -> Iterator[tuple[str, dict]]:
    for entry in entries:
        entry = entry if isinstance(entry, dict) else {}
        yield str(entry.get("id")), entry


def _why_unusable(entry: dict[str, Any], known_image: bool, name: str | None) -> str:
    if not known_image:
        return f"image_id {brief(entry.get('image_id'))} is not among the images"
    if name is None:
        return f"category_id {brief(entry.get('category_id'))} is not among the categories"
    box: Any = entry.get("bbox")
    numbers = isinstance(box, list) and len(box) == 4 and all(map(is_coordinate, box))
    if not (numbers and box[2] > 0 and box[3] > 0):
        return f"bbox {brief(box)} is no [x, y, width, height] with an area"
    return ""


def _ask_image(image: dict, found: Found, absent: list[str]) -> Iterator[dict]:
    """A count, a presence, an absence, a place and a side, where the image allows them."""
    name = image["file_name"]

    def ask(
        kind: str,
        among: list,
        wordings: tuple[str, ...],
        answer: Callable[..., str | None],
        check: str = "text",
    ) -> Iterator[dict]:
        if not among:
            return
        rng = random.Random(derive_seed("coco", name, kind))
        subject = among[rng.randrange(len(among))]
        words = (subject,) if isinstance(subject, str) else subject
        boxes = [(word, box) for word in words for box in found.get(word, ())]
        yield {
            "id": f"{name}:{kind}:{'+'.join(words)}",
            "question": rng.choice(wordings).format(a=words[0], b=words[-1]),
            "answer": answer(*words),
            "kind": "paired" if boxes else "single",
            "check": check,
            "source": "coco",
            "image": name,
            "boxes": [box for _, box in boxes],
            "labels": [word for word, _ in boxes],
        }

    present = sorted(found)
    places = {word: _place(found[word][0], image) for word in present if len(found[word]) == 1}
    sides = {(a, b): _side(found[a][0], found[b][0]) for a in places for b in places if a != b}
    yield from ask("count", present, COUNT, lambda a: str(len(found[a])), "math")
    yield from ask("present", present, EXISTS, lambda a: "yes")
    yield from ask("absent", absent, EXISTS, lambda a: "no")
    yield from ask("where", [word for word in places if places[word]], WHERE, places.get)
    yield from ask("side", [pair for pair in sides if sides[pair]], SIDE, lambda a, b: sides[a, b])


def _place(box: Sequence[float], image: dict) -> str:
    """The ninth of the image in which the box's centre lies; "" near a border between two, or
    where the image's size is not given."""
    width: Any = image.get("width")
    height: Any = image.get("height")
    if not all(is_coordinate(side) and side > 0 for side in (width, height)):
        return ""
    centre = ((box[0] + box[2]) / 2 / width, (box[1] + box[3]) / 2 / height)
    near = any(abs(c - border) < MARGIN for c in centre for border in (1 / 3, 2 / 3))
    return "" if near else grid_cell(tuple(box), width, height)


def _side(a: list[float], b: list[float]) -> str:
    """Returns on which side of b a lies, if no column of pixels holds both."""
    return "left" if a[2] <= b[0] else "right" if a[0] >= b[2] else ""
