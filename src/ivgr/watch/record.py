"""What a run leaves on disk beside its checkpoints: run.json once, every iteration's
rollouts as rollouts/ITERATION.jsonl.gz."""

import gzip
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

import lightning as L
import torch

from ivgr.data.encode import Batch
from ivgr.files import write_atomically, write_json
from ivgr.query import Query
from ivgr.seeding import run_seed

PACKAGES = ("ivgr", "torch", "transformers", "lightning", "timm", "torchmetrics", "webdataset")


class RunRecord(L.Callback):
    """Writes run.json at the start of a run.

    Args:
        config: The resolved configuration, as YAML text.
    """

    def __init__(self, config: str) -> None:
        self.config = config

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            record = {"seed": run_seed(), "config": self.config, **environment()}
            path = Path(trainer.default_root_dir) / "run.json"
            write_json(path, record)


class RolloutRecord(L.Callback):
    """Writes the rollouts of all ranks after every iteration; a repeated iteration replaces its
    file.

    Args:
        every: Only of the iterations that this divides, and of the last.
    """

    def __init__(self, every: int = 1) -> None:
        self.every = every

    def on_train_batch_end(self, trainer, module, outputs, batch: Batch, batch_idx: int) -> None:
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


def environment() -> dict:
    """Commit (null outside a git checkout), versions and hardware."""
    here = Path(__file__).parent
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return {
        "commit": git.stdout.strip() or None,
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "hardware": {
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }
