"""The files that a run leaves beside its checkpoints: run.json once, and every iteration's rollouts as
rollouts/ITERATION.jsonl.gz."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import lightning as L
import torch

from ivgr.core.atomic_files import write_json
from ivgr.core.seeding import run_seed

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
