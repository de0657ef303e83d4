"""The end of a run comes once: summary.json is the last that it leaves, and tells a run that is over from one
that was killed on its last steps."""

import json
from pathlib import Path

import lightning as L

from ivgr.callbacks.protocol import TrainedModule
from ivgr.callbacks.writer import writer_of
from ivgr.core.atomic_files import write_json
from ivgr.core.errors import UserError
from ivgr.core.lightning_private import finished_iterations

SUMMARY = "summary.json"


class Ending(L.Callback):
    """Finishes a run whose iterations are all done: figures, export, summary. UserError if nothing is left to
    do."""

    def on_train_start(self, trainer: L.Trainer, module: TrainedModule) -> None:
        finished, iterations = finished_iterations(trainer), getattr(module, "iterations", None)
        if iterations is None or finished < iterations:  # None: a LightningModule that is not ours
            return
        if trainer.strategy.broadcast(is_over(trainer)):
            raise UserError(f"the run is complete at iteration {finished}; raise {module.length} to go on")
        trainer.should_stop = True


def is_over(trainer: L.Trainer) -> bool:
    """Whether summary.json is that of the iterations which are done."""
    try:
        return json.loads(_path(trainer).read_text())["iterations"] == finished_iterations(trainer)
    except (OSError, RecursionError, ValueError, LookupError, TypeError):
        return False


def write_summary(trainer: L.Trainer, summary: dict) -> None:
    """summary.json, by rank 0, after all that the event files hold."""
    if trainer.is_global_zero:
        writer_of(trainer).flush()
        write_json(_path(trainer), summary)


def _path(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / SUMMARY
