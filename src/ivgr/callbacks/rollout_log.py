"""Rollouts of an iteration as a file of lines."""

import gzip
import json
from pathlib import Path
from typing import Any

import lightning as L

from ivgr.callbacks.protocol import RLModule
from ivgr.core.atomic_files import write_atomically
from ivgr.core.query import Query
from ivgr.data.encode import Batch


class RolloutRecord(L.Callback):
    """Writes the rollouts of all ranks after every iteration; a repeated iteration replaces its
    file.

    Args:
        every: Only of the iterations that this divides, and of the last.
    """

    def __init__(self, every: int = 1) -> None:
        self.every = every

    def on_train_batch_end(
        self, trainer: L.Trainer, module: RLModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        wanted = module.iteration % self.every == 0 or module.iteration == module.iterations
        if not (trainer.is_global_zero and wanted):
            return
        path = Path(trainer.default_root_dir) / "rollouts" / f"{module.iteration:06d}.jsonl.gz"
        lines = "".join(json.dumps(row) + "\n" for row in rollout_rows(module.everyone))
        write_atomically(path, gzip.compress(lines.encode(), mtime=0))


def rollout_rows(queries: list[Query]) -> list[dict]:
    """One plain dict a rollout: id, stream, text, the width and height of the frame that its
    boxes are in, reward terms, advantage, reference."""
    return [
        {
            "id": query.sample.id,
            "stream": group.stream,
            "text": rollout.text,
            "frame": [query.frame.width, query.frame.height],
            "tokens": rollout.tokens.tolist(),
            "truncated": rollout.truncated,
            "terms": rollout.terms,
            "reward": rollout.reward,
            "advantage": rollout.advantage,
            "reference": rollout.reference,
        }
        for query in queries
        for group in query.groups
        for rollout in group.rollouts
    ]
