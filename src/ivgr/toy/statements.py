"""The statements of the tiny world's reasoning, written and read in one place.

A claim says one thing of one object: `(object, attribute, value)`, for example
`("red circle", "place", "upper left")` or `("large cross", "color", "red")`. A sentence
gives a place in words ("is in the upper left") or by a box ("is at <box>[…]</box>");
both read as the same claim, by the box's centre.
"""

import re

from ivgr.core.boxes import COLUMNS, ROWS, grid_cell, parse_boxes
from ivgr.toy.scene import ATTRIBUTES

Claim = tuple[str, str, str]

_WORDS = {word: attribute for attribute, words in ATTRIBUTES.items() for word in words}
_SENTENCE = re.compile(
    r"\b[Tt]he ([a-z]+(?: [a-z]+){0,3}) is (at <box>[^<]*</box>|in the [a-z]+ [a-z]+|(?:a )?[a-z]+)"
)


def say_place(name: str, place: str) -> str:
    return f"The {name} is in the {place}."


def say_box(name: str, box: tuple[float, ...]) -> str:
    return f"The {name} is at <box>[{','.join(f'{c:g}' for c in box)}]</box>."


def say_attribute(name: str, value: str) -> str:
    return f"The {name} is {'a ' if _WORDS[value] == 'shape' else ''}{value}."


def read_claims(text: str, width: float = 1000, height: float = 1000) -> set[Claim]:
    """Every claim in `text`; boxes are in a frame of `width` x `height`. What is not a
    sentence of the world, or an invalid box, claims nothing."""
    claims = set()
    for name, predicate in _SENTENCE.findall(text):
        if predicate.startswith("at "):
            claims |= {(name, "place", grid_cell(box, width, height)) for box in parse_boxes(predicate)}
        elif predicate.startswith("in the "):
            row, column = predicate.removeprefix("in the ").split()
            if row in ROWS and column in COLUMNS:
                claims.add((name, "place", f"{row} {column}"))
        elif (value := predicate.removeprefix("a ")) in _WORDS:
            claims.add((name, _WORDS[value], value))
    return claims
