"""Questions about a scene with their answers, boxes and gold reasoning of both streams.

In: a `Scene` and a Generator. Out: a `Task`, or None where the scene does not allow it.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ivgr.core.boxes import grid_cell
from ivgr.toy.scene import GRID, Scene, Thing
from ivgr.toy.statements import say_attribute, say_box, say_place


@dataclass(frozen=True)
class Task:
    """boxes in pixels, one label each; reasoning by stream ("grounded" has its boxes in
    the 0-1000 frame)."""

    question: str
    answer: str
    kind: str
    check: str
    labels: tuple[str, ...]
    boxes: tuple[tuple[int, int, int, int], ...]
    reasoning: dict[str, str]


def ask_attribute(scene: Scene, rng: np.random.Generator) -> Task | None:
    """Colour of the only thing of its size and shape, or shape of the only one of its
    size and colour."""
    wanted, given = (("color", "shape"), ("shape", "color"))[rng.integers(2)]
    names = {thing: f"{thing.size} {getattr(thing, given)}" for thing in scene.things}
    single = [thing for thing, name in names.items() if Counter(names.values())[name] == 1]
    if not single:
        return None
    thing = single[rng.integers(len(single))]
    noun = names[thing] + (" object" if given == "color" else "")
    value = getattr(thing, wanted)
    return _paired(scene, f"What {wanted} is the {noun}?", value, {noun: thing}, [say_attribute(noun, value)])


def ask_relation(scene: Scene, rng: np.random.Generator) -> Task | None:
    """Asks on which side of another thing a thing lies; their centres are at least two cells apart."""
    if len(scene.things) < 2:
        return None
    a, b = (scene.things[i] for i in rng.permutation(len(scene.things))[:2])
    axis, low, high = (("column", "left", "right"), ("row", "above", "below"))[rng.integers(2)]
    distance = (getattr(a, axis) + a.cells / 2) - (getattr(b, axis) + b.cells / 2)
    if abs(distance) < 2:
        return None
    of = " of" if axis == "column" else ""
    names = [f"{thing.color} {thing.shape}" for thing in (a, b)]
    question = f"Is the {names[0]} {low} or {high}{of} the {names[1]}?"
    return _paired(scene, question, low if distance < 0 else high, dict(zip(names, (a, b), strict=True)), [])


def ask_count(scene: Scene, rng: np.random.Generator) -> Task:
    """Asks how many things share a colour, shape or size; no boxes are asked for."""
    thing = scene.things[rng.integers(len(scene.things))]
    attribute = ("color", "shape", "size")[rng.integers(3)]
    value = getattr(thing, attribute)
    alike = [t for t in scene.things if getattr(t, attribute) == value]
    words = " ".join(say_place(f"{t.color} {t.shape}", _place(scene, t)) for t in alike)
    noun = f"{value}s" if attribute == "shape" else f"{value} objects"
    noun = "crosses" if noun == "crosss" else noun
    return Task(f"How many {noun} are there?", str(len(alike)), "single", "math", (), (), {"textual": words})


def describe(scene: Scene, rng: np.random.Generator) -> Task:
    """Every thing with its box: the perception lesson of the cold start. The order is random,
    so that a box can be found only by the name before it."""
    order = [scene.things[i] for i in rng.permutation(len(scene.things))]
    named = {thing.name: thing for thing in order}
    return _paired(scene, "Describe every object.", str(len(order)), named, [])


TASKS: dict[str, Callable[[Scene, np.random.Generator], Task | None]] = {
    "attribute": ask_attribute,
    "relation": ask_relation,
    "count": ask_count,
    "describe": describe,
}


def _paired(scene: Scene, question: str, answer: str, named: dict[str, Thing], remarks: list[str]) -> Task:
    boxes = tuple(scene.box(thing) for thing in named.values())
    grounded = [say_box(name, _frame(scene, scene.box(thing))) for name, thing in named.items()]
    textual = [say_place(name, _place(scene, thing)) for name, thing in named.items()]
    reasoning = {"grounded": " ".join(grounded + remarks), "textual": " ".join(textual + remarks)}
    return Task(question, answer, "paired", "text", tuple(named), boxes, reasoning)


def _frame(scene: Scene, box: tuple[int, int, int, int]) -> tuple[int, ...]:
    """Exact: every box lies on the raster."""
    sides = (scene.width, scene.height) * 2
    return tuple(c * GRID // side * (1000 // GRID) for c, side in zip(box, sides, strict=True))


def _place(scene: Scene, thing: Thing) -> str:
    return grid_cell(scene.box(thing), scene.width, scene.height)
