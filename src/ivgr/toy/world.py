"""The tiny world as shards: `ivgr synth`."""

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from PIL import Image

from ivgr.core.atomic_files import write_atomically
from ivgr.core.errors import UserError
from ivgr.core.sample import Sample
from ivgr.core.seeding import derive_seed
from ivgr.core.settings import PositiveInt, Seed, checked, number
from ivgr.data.shards import shard_path, write_shards
from ivgr.toy.draw_scene import draw_scene
from ivgr.toy.scene import Scene, sample_scene
from ivgr.toy.tasks import TASKS, Task

PER_SHARD = 500
Split = Literal["train", "val"]
Kind = Literal["questions", "describe"]
# A scene holds no more.
if TYPE_CHECKING:
    Objects: TypeAlias = int
else:
    Objects = number("Objects", int, 1, 8)


@checked("synth: --")
@dataclass(frozen=True)
class World:
    """The scenes to draw.

    split "train" or "val" (they never share a scene); count scenes; seed; lesson
    "questions" (two relations to two attributes to one count) or "describe" (every
    object with its box); fewest and most objects per scene.
    """

    split: Split
    count: PositiveInt
    seed: Seed = 0
    lesson: Kind = "questions"
    fewest: Objects = 2
    most: Objects = 6

    def __post_init__(self) -> None:
        if self.fewest > self.most:
            raise UserError(f"synth: --fewest is {self.fewest}, must be at most --most, which is {self.most}")


def write_world(folder: Path, world: World) -> None:
    """Writes the world's shards into `folder` unless exactly they already lie there. world.json comes
    first, so that what a killed call has begun can be told from another world."""
    marker, saved = folder / "world.json", json.dumps(asdict(world)).encode()
    if marker.exists() or list(folder.glob(f"{world.split}-*.tar")):
        if not marker.exists() or marker.read_bytes() != saved:
            raise UserError(
                f"{folder}: holds shards of other settings; remove the folder or choose another one"
            )
        if all(shard_path(folder, world.split, i).exists() for i in range(-(-world.count // PER_SHARD))):
            return
    write_atomically(marker, saved)
    write_shards(folder, world.split, draw_samples(world), PER_SHARD)


def draw_samples(world: World) -> Iterator[Sample]:
    """The world's samples in order, images as JPEG bytes."""
    rng = np.random.default_rng(derive_seed("world", asdict(world)))
    for index in range(world.count):
        scene, task = _draw_task(world, index, rng)
        yield Sample(
            id=f"tiny-{world.split}-{world.seed}-{world.lesson}-{index:06d}",
            question=task.question,
            answer=task.answer,
            kind=task.kind,
            check=task.check,
            source=f"tiny-{world.lesson}",
            boxes=task.boxes,
            labels=task.labels,
            reasoning=task.reasoning,
            images=(encode_jpeg(draw_scene(scene)),),
        )


def encode_jpeg(image: Image.Image) -> bytes:
    """Sharp enough that colours do not bleed into their neighbours."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def _draw_task(world: World, index: int, rng: np.random.Generator) -> tuple[Scene, Task]:
    asked = ("relation", "attribute", "relation", "attribute", "count")[index % 5]
    ask = TASKS["describe" if world.lesson == "describe" else asked]
    while True:
        scene = sample_scene(rng, int(rng.integers(world.fewest, world.most + 1)), world.split)
        task = ask(scene, rng)
        if task is not None:
            return scene, task
