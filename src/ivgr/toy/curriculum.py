"""Cold-start data: a curriculum of lessons drawn from the tiny world.

Each lesson is a pool of scenes, seen in seeded order for so many steps; in the last one
grounded and textual demonstrations stand 32 : 3, as in the paper.
"""

import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lightning as L
from torch.utils.data import DataLoader, IterableDataset

from ivgr.core.prompts import GROUNDED, SINGLE, TEXTUAL
from ivgr.core.sample import Sample, read_sample
from ivgr.core.seeding import derive_seed, run_seed
from ivgr.core.settings import NonNegativeInt, PositiveInt, Seed, Share, checked
from ivgr.data.encode import QueryEncoder, encode_batch
from ivgr.data.sft_encode import Demonstration, encode_demonstrations
from ivgr.data.shards import find_shards, read_shards
from ivgr.data.validation_stream import HeldOut
from ivgr.toy.place_accuracy import PlaceAccuracy
from ivgr.toy.world import Kind, Objects, World, write_world


@checked("data.lessons: ")
@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One lesson of a curriculum: how long, and on which scenes."""

    steps: PositiveInt
    """Optimizer steps."""

    fewest: Objects
    """Objects in a scene, at least."""

    most: Objects
    """Objects in a scene, at most."""

    describe: NonNegativeInt = 0
    """Scenes to describe as a whole."""

    questions: NonNegativeInt = 0
    """Scenes with one question each."""

    describe_share: Share = 1.0
    """Share of the demonstrations that describe a scene as a whole."""

    textual_share: Share = 0.0
    """Share of all demonstrations that are of the textual stream."""

    def worlds(self, seed: int) -> dict[str, World]:
        """The pools to draw, by the world's lesson name."""
        counts: dict[Kind, int] = {"describe": self.describe, "questions": self.questions}
        return {
            name: World("train", count, seed, name, self.fewest, self.most)
            for name, count in counts.items()
            if count
        }


@checked("data.")
class Curriculum(L.LightningDataModule):
    """Lessons one after the other, and held-out questions for the final figures.

    Args:
        lessons: The curriculum.
        batch: Demonstrations per step.
        workers: Processes that decode and encode.
        val_count: Held-out scenes.
        val_batch: Queries decoded together in evaluation.
        world_seed: Seed of the drawing.
    """

    validation_metrics = (PlaceAccuracy(),)
    trainer: L.Trainer  # pyright: ignore[reportIncompatibleVariableOverride]  Lightning sets it before any hook

    def __init__(
        self,
        lessons: list[Lesson],
        batch: PositiveInt = 64,
        workers: NonNegativeInt = 1,
        val_count: PositiveInt = 640,
        val_batch: PositiveInt = 64,
        world_seed: Seed = 1,
    ) -> None:
        super().__init__()
        self.lessons = lessons
        self.batch = batch
        self.workers = workers
        self.val_count = val_count
        self.val_batch = val_batch
        self.world_seed = world_seed

    @property
    def total_steps(self) -> int:
        return sum(lesson.steps for lesson in self.lessons)

    def prepare_data(self) -> None:
        """Draws what is missing, one process per pool."""
        worlds = {
            self._folder(w): w for lesson in self.lessons for w in lesson.worlds(self.world_seed).values()
        }
        worlds[self._root() / "val"] = World("val", self.val_count, self.world_seed)
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            list(pool.map(write_world, worlds.keys(), worlds.values()))

    def train_dataloader(self) -> DataLoader:
        pools = [
            {name: find_shards(str(self._folder(w))) for name, w in lesson.worlds(self.world_seed).items()}
            for lesson in self.lessons
        ]
        dataset = Lessons(self.lessons, pools, self.batch, run_seed())
        encode = partial(encode_demonstrations, encoder=self._encoder())
        return DataLoader(
            dataset,
            batch_size=None,
            collate_fn=encode,
            num_workers=self.workers,
            multiprocessing_context="spawn" if self.workers else None,
        )

    def val_dataloader(self) -> DataLoader:
        held_out = HeldOut(find_shards(str(self._root() / "val")), None, self.val_batch, 0, 1)
        encode = partial(encode_batch, encoder=self._encoder(), streams=(GROUNDED, TEXTUAL))
        return DataLoader(held_out, batch_size=None, collate_fn=encode)

    def _root(self) -> Path:
        return Path(self.trainer.default_root_dir) / "world"

    def _encoder(self) -> QueryEncoder:
        module: Any = self.trainer.lightning_module
        return module.encoder

    def _folder(self, world: World) -> Path:
        return self._root() / f"{world.lesson}-{world.fewest}-{world.most}-{world.count}"


class Lessons(IterableDataset):
    """Yields one batch of demonstrations per step, from one reader, in seeded order."""

    def __init__(
        self, lessons: list[Lesson], pools: list[dict[str, list[str]]], batch: int, seed: int
    ) -> None:
        self.lessons = lessons
        self.pools = pools
        self.batch = batch
        self.seed = seed

    def __iter__(self) -> Iterator[list[Demonstration]]:
        for index, (lesson, pools) in enumerate(zip(self.lessons, self.pools, strict=True)):
            rng = random.Random(derive_seed(self.seed, "lesson", index))
            draw = {name: _endless(shards, rng) for name, shards in pools.items()}
            for _ in range(lesson.steps):
                yield [_demonstrate(lesson, draw, rng) for _ in range(self.batch)]


def _endless(shards: list[str], rng: random.Random) -> Iterator[Sample]:
    samples = [read_sample(entry) for entry in read_shards(shards)]
    while True:
        yield from rng.sample(samples, len(samples))


def _demonstrate(lesson: Lesson, draw: dict[str, Iterator[Sample]], rng: random.Random) -> Demonstration:
    textual = rng.random() < lesson.textual_share
    samples = draw["describe" if rng.random() < lesson.describe_share else "questions"]
    if textual:
        sample = next(samples)
        return Demonstration(sample, SINGLE if sample.kind == "single" else TEXTUAL)
    return Demonstration(next(sample for sample in samples if sample.kind == "paired"), GROUNDED)
