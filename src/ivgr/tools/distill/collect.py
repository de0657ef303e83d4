"""The grounded rollouts of a run that are worth imitating.

In: the run's folder (rollouts/NNNNNN.jsonl.gz) and the shards it was trained on. Out:
`Candidate`s, the best first within a query.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ivgr.core.errors import UserError
from ivgr.core.frame import Frame
from ivgr.core.printable import in_line
from ivgr.core.prompts import GROUNDED
from ivgr.core.response import read_answer, read_think
from ivgr.core.sample import Sample, read_sample
from ivgr.data.shards import find_shards, read_shards


@dataclass(frozen=True)
class Candidate:
    """A grounded rollout that is well formed, right and well boxed; its boxes are in `frame`.
    The sample comes without its images."""

    sample: Sample
    think: str
    answer: str
    frame: Frame


@dataclass(frozen=True)
class QualifiedRollout:
    """A rollout whose sample is still to be found."""

    id: str
    text: str
    frame: Frame
    box_reward: float


@dataclass
class RolloutSummary:
    """Grounded rollouts read, those that qualify, and the best of each query among them."""

    read: int
    qualified: int
    best: list[QualifiedRollout]


def read_rollouts(run: Path) -> Iterator[tuple[dict, str]]:
    """Every recorded rollout of `run` in order, with where it stands; UserError names a file
    or line that cannot be read."""
    paths = sorted((run / "rollouts").glob("*.jsonl.gz"))
    if not paths:
        raise UserError(f"{run}: no rollouts/*.jsonl.gz; give the trainer.default_root_dir of an `ivgr fit`")
    for path in paths:
        try:
            lines = gzip.decompress(path.read_bytes()).decode().splitlines()
            rows = [json.loads(line) for line in lines]
        except (OSError, EOFError, RecursionError, ValueError, zlib.error) as error:
            raise UserError(f"{path}: cannot be read ({error}); remove it or restore it") from error
        for number, row in enumerate(rows, 1):
            yield row, f"{path}: line {number}"


def take_census(run: Path, threshold: float, most: int) -> RolloutSummary:
    """The rollouts of `run` with R_format = 1, R_acc = 1 and R_box > `threshold`; of each
    query up to `most` with different reasoning, of the largest R_box, the earlier first."""
    census, best = RolloutSummary(0, 0, []), {}
    for row, where in read_rollouts(run):
        if (found := _read_grounded(row, where)) is None:
            continue
        census.read += 1
        rollout, right = found
        if right and rollout.box_reward > threshold:
            census.qualified += 1
            best[rollout.id] = _best([*best.get(rollout.id, ()), rollout], most)
    census.best = [rollout for sample_id in sorted(best) for rollout in best[sample_id]]
    return census


def _read_grounded(row: dict, where: str) -> tuple[QualifiedRollout, bool] | None:
    """A row's rollout and whether it is well formed and right; None of another stream."""
    try:
        if row["stream"] != GROUNDED:
            return None
        terms = row["terms"]
        rollout = QualifiedRollout(row["id"], row["text"], Frame(*row["frame"]), terms["box"])
        return rollout, terms["format"] == 1 and terms.get("accuracy") == 1
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{where}: not as this version of ivgr records a rollout ({error}); run anew"
        ) from error


def _best(rollouts: list[QualifiedRollout], most: int) -> list[QualifiedRollout]:
    different = {read_think(rollout.text): rollout for rollout in reversed(rollouts)}
    kept = [rollout for rollout in rollouts if different[read_think(rollout.text)] is rollout]
    return sorted(kept, key=lambda rollout: -rollout.box_reward)[:most]


def find_candidates(rollouts: list[QualifiedRollout], shards: str) -> list[Candidate]:
    """`rollouts` with their samples; UserError names an id that `shards` do not hold, or
    hold for two different samples."""
    wanted = {rollout.id for rollout in rollouts}
    samples: dict[str, Sample] = {}
    images: dict[str, int] = {}
    for entry in read_shards(find_shards(shards)):
        sample = read_sample(entry)
        if sample.id not in wanted:
            continue
        images[sample.id] = images.get(sample.id, hash(sample.images))
        bare = replace(sample, images=())
        if samples.setdefault(sample.id, bare) != bare or images[sample.id] != hash(sample.images):
            raise UserError(
                f"{shards}: two samples have the id {in_line(sample.id, 80)}, so a rollout does not say "
                "of which it is; write the ids of one source anew before the run"
            )
    if missing := sorted(wanted - samples.keys()):
        raise UserError(
            f"{shards}: {len(missing)} of the run's {len(wanted)} queries are not there "
            f"(first {missing[0]}); give the shards that the run was trained on"
        )
    return [
        Candidate(samples[rollout.id], read_think(rollout.text), read_answer(rollout.text), rollout.frame)
        for rollout in rollouts
    ]
