"""Boxes as answers (RefCOCO, RefCOCO+, RefCOCOg): how a gold box and a written one are read and compared.

The reading is VLMEvalKit's (open-compass/VLMEvalKit, vlmeval/dataset/refcoco.py): four numbers up to 1.5
are shares of the picture's sides, up to 1000 thousandths of them, and pixels beyond. In: texts. Out: boxes
in pixels.
"""

import re
from collections.abc import Callable

from ivgr.core.boxes import Box, iou

SHARES, THOUSANDTHS = 1.5, 1000.0
HIT = 0.5
# The splits whose mean is the kit's headline.
SPLITS = tuple(
    f"{name}_{part}"
    for name, parts in (
        ("RefCOCO", "val testA testB"),
        ("RefCOCO+", "val testA testB"),
        ("RefCOCOg", "val test"),
    )
    for part in parts.split()
)

_NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
_GAP = r"(?:\s*,\s*|\s+)"
_BOX = re.compile(rf"\[\s*({_NUMBER}){_GAP}({_NUMBER}){_GAP}({_NUMBER}){_GAP}({_NUMBER})\s*\]")
_PARTS = {"val": "val", "test": "test", "testa": "testA", "testb": "testB"}


def read_numbers(text: str) -> list[float] | None:
    """Returns the numbers of the first [a, b, c, d], otherwise the first four numbers; None if there are
    none."""
    found = _BOX.search(text)
    numbers = list(found.groups()) if found else re.findall(_NUMBER, text)[:4]
    return [float(number) for number in numbers] if len(numbers) == 4 else None


def to_pixels(numbers: list[float], width: float, height: float) -> Box:
    """Whichever way they are meant, within the picture, and the smaller first."""
    largest, sides = max(map(abs, numbers)), (width, height, width, height)
    if largest <= SHARES:
        numbers = [n * side for n, side in zip(numbers, sides, strict=True)]
    elif largest <= THOUSANDTHS:
        numbers = [n / THOUSANDTHS * side for n, side in zip(numbers, sides, strict=True)]
    x1, y1, x2, y2 = (min(max(n, 0.0), side) for n, side in zip(numbers, sides, strict=True))
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def write_gold(fields: dict, fault: Callable[[str], Exception]) -> str:
    """ "[x1, y1, x2, y2] of W x H", in pixels: of the columns bbox_x1 …, else of a box in answer or bbox,
    with the picture's width and height; raises fault(reason) where they are missing."""
    try:
        width, height = (float(fields[side]) for side in ("width", "height"))
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise fault("no size of its picture; fill the columns width and height") from error
    if not 0 < width < 1e6 or not 0 < height < 1e6:
        raise fault(f"its picture's size is {width} x {height}")
    try:
        numbers = [float(fields[name]) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")]
    except (ArithmeticError, KeyError, TypeError, ValueError):
        numbers = read_numbers(str(fields.get("answer", fields.get("bbox", ""))))
        if numbers is not None and max(map(abs, numbers)) <= SHARES:
            numbers = [n * side for n, side in zip(numbers, (width, height) * 2, strict=True)]
    if numbers is None or not all(abs(n) < 1e6 for n in numbers):
        raise fault("no gold box; fill bbox_x1, bbox_y1, bbox_x2 and bbox_y2, or answer")
    return f"[{', '.join(map(repr, numbers))}] of {width!r} x {height!r}"


def read_gold(gold: str) -> tuple[Box, float, float]:
    """Reads what `write_gold` has written: the box, width and height."""
    box, _, size = gold.partition(" of ")
    width, _, height = size.partition(" x ")
    return tuple(read_numbers(box) or ()), float(width), float(height)


def overlap(answer: str, gold: str) -> float | None:
    """Returns the IoU of the box in `answer` with the gold box; None if `answer` has no box."""
    numbers = read_numbers(answer)
    if numbers is None:
        return None
    box, width, height = read_gold(gold)
    return iou(to_pixels(numbers, width, height), box)


def name_split(category: str) -> str:
    """Returns one name for the spellings of a split: "RefCOCO+ test A" becomes "RefCOCO+_testA"."""
    name, _, part = category.strip().replace("_", " ", 1).partition(" ")
    plain = re.sub(r"[\s_-]+", "", part.lower())
    return f"{name}_{_PARTS.get(plain, part.strip().replace(' ', '_').replace('-', '_'))}" if part else name
