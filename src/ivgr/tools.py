"""The tools of `ivgr` that are not training: functions whose arguments become options."""

from pathlib import Path

from ivgr.archive import Archive
from ivgr.bench.command import BENCH
from ivgr.checkpoint import read_checkpoint, refuse_misshapen
from ivgr.difficulty import filter_shards
from ivgr.distill.command import distill
from ivgr.errors import UserError
from ivgr.evaluation.command import evaluate
from ivgr.evaluation.differences import analyse, compare
from ivgr.evaluation.score import score
from ivgr.export import export
from ivgr.inference.command import ask
from ivgr.pack.command import pack
from ivgr.pack.look import inspect
from ivgr.plan.command import plan
from ivgr.policy.checkpoint import scratch
from ivgr.printable import print_table
from ivgr.settings import PositiveInt, Seed
from ivgr.study.command import study
from ivgr.world.quiz import write_quiz
from ivgr.world.write import Kind, Objects, Split, World, write_world


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
        fewest: Fewest objects a scene.
        most: Most objects a scene.
        tsv: Instead of shards, write FOLDER/vstar.tsv, a benchmark of multiple-choice questions for
            `ivgr evaluate`.
    """
    if tsv:
        asked = write_quiz(folder / "vstar.tsv", World(split, count, seed, lesson, fewest, most))
        print(f"{asked} questions in {folder / 'vstar.tsv'}")
        return
    write_world(folder, World(split, count, seed, lesson, fewest, most))
    print(f"{count} samples in {folder}")


def show(checkpoint: Path) -> None:
    """Print the rollout archive of a checkpoint.

    Args:
        checkpoint: A checkpoint of `ivgr fit`.
    """
    state = read_checkpoint(checkpoint)
    if "archive" not in state["ivgr"]:
        raise UserError(f"archive show: {checkpoint} holds no rollout archive")
    refuse_misshapen(state, {"ivgr": {"archive": Archive.state_shape, "iteration": int}}, checkpoint)
    rows = [
        (sample_id, f"{box_reward:.3f}", think)
        for sample_id, (box_reward, think) in sorted(state["ivgr"]["archive"].items())
    ]
    print_table(("id", "box reward", "reference reasoning"), rows)
    print(f"{len(rows)} queries in the archive at iteration {state['ivgr']['iteration']}")


TOOLS = {
    "ask": ask,
    "synth": synth,
    "pack": pack,
    "inspect": inspect,
    "filter": filter_shards,
    "distill": distill,
    "evaluate": evaluate,
    "score": score,
    "compare": compare,
    "analyse": analyse,
    "scratch": scratch,
    "plan": plan,
    "archive": {"show": show},
    "export": export,
    "bench": BENCH,
    "study": study,
}
