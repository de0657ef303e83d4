"""The tiny world: scenes of coloured shapes with exact boxes.

In: a numpy Generator and the number of objects. Out: a `Scene`, plain data.
Every length is a whole number of cells on a GRID x GRID raster of the image, so that a
gold box is exact in pixels and falls on a multiple of 1000/GRID in the 0-1000 frame.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

GRID = 10
SIDES = (120, 140, 160, 180)
COLORS = {
    "red": (214, 40, 40),
    "green": (40, 150, 60),
    "blue": (40, 70, 210),
    "yellow": (240, 205, 30),
    "purple": (130, 50, 160),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": 2, "large": 3}
ATTRIBUTES = {"color": tuple(COLORS), "shape": SHAPES, "size": tuple(SIZES)}


@dataclass(frozen=True)
class Thing:
    """One drawn object; column, row and cells (side length) are in raster cells."""

    color: str
    shape: str
    size: str
    column: int
    row: int

    @property
    def cells(self) -> int:
        return SIZES[self.size]

    @property
    def name(self) -> str:
        return f"{self.size} {self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """width, height in pixels; backdrop = seed of the background's random tint."""

    width: int
    height: int
    backdrop: int
    things: tuple[Thing, ...]

    def box(self, thing: Thing) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2 of the thing in pixels (x2, y2 exclusive)."""
        cell_x, cell_y = self.width // GRID, self.height // GRID
        right, bottom = thing.column + thing.cells, thing.row + thing.cells
        return thing.column * cell_x, thing.row * cell_y, right * cell_x, bottom * cell_y

    @property
    def split(self) -> str:
        """The scene's content decides its split, so that no two splits can share one."""
        digest = hashlib.sha256(repr(sorted(map(repr, self.things))).encode()).digest()
        return "val" if digest[0] < 32 else "train"


def sample_scene(rng: np.random.Generator, things: int, split: str) -> Scene:
    """A random scene of `split` with that many non-overlapping things, no two alike in
    both colour and shape."""
    while True:
        placed = _place_things(rng, things)
        if placed is None:
            continue
        width, height = (int(side) for side in rng.choice(SIDES, 2))
        scene = Scene(width, height, int(rng.integers(2**31)), placed)
        if scene.split == split:
            return scene


def _place_things(rng: np.random.Generator, count: int) -> tuple[Thing, ...] | None:
    """Non-overlapping things, None if the raster filled up before all had a place."""
    kinds = rng.permutation(len(COLORS) * len(SHAPES))[:count]
    placed: list[Thing] = []
    for _ in range(20 * count):
        if len(placed) == count:
            break
        color, shape = divmod(int(kinds[len(placed)]), len(SHAPES))
        size = str(rng.choice(list(SIZES)))
        column, row = (int(n) for n in rng.integers(0, GRID - SIZES[size] + 1, 2))
        thing = Thing(list(COLORS)[color], SHAPES[shape], size, column, row)
        if not any(_overlap(thing, other) for other in placed):
            placed.append(thing)
    return tuple(placed) if len(placed) == count else None


def _overlap(a: Thing, b: Thing) -> bool:
    return (
        a.column < b.column + b.cells
        and b.column < a.column + a.cells
        and a.row < b.row + b.cells
        and b.row < a.row + a.cells
    )
