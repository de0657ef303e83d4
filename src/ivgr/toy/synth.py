"""`ivgr synth`: shards of the tiny world, or a benchmark of questions about it."""

from pathlib import Path

from ivgr.core.settings import PositiveInt, Seed
from ivgr.toy.quiz import write_quiz
from ivgr.toy.world import Kind, Objects, Split, World, write_world


def synth(
    folder: Path,
    split: Split = "train",
    count: PositiveInt = 1000,
    seed: Seed = 0,
    lesson: Kind = "questions",
    fewest: Objects = 2,
    most: Objects = 6,
    tsv: bool = False,
) -> None:
    """Draw shards of the tiny world.

    Args:
        folder: Where the shards go, as SPLIT-000000.tar, …
        split: "train" or "val"; they never share a scene.
        count: Number of scenes.
        seed: Seed of the drawing.
        lesson: "questions" (paired and single queries) or "describe" (every object with its box).
        fewest: Fewest objects per scene.
        most: Most objects per scene.
        tsv: Instead of shards, write FOLDER/vstar.tsv, a benchmark of multiple-choice questions for
            `ivgr evaluate`.
    """
    if tsv:
        asked = write_quiz(folder / "vstar.tsv", World(split, count, seed, lesson, fewest, most))
        print(f"{asked} questions in {folder / 'vstar.tsv'}")
        return
    write_world(folder, World(split, count, seed, lesson, fewest, most))
    print(f"{count} samples in {folder}")
