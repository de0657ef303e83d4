"""Checkpoints: written aside and renamed, so that each appears whole or not at all.

CHECKPOINTS/iteration-000150.ckpt is a file, or a folder where weights are sharded; last.ckpt and
best.ckpt are links to two of them. What the event files hold of an iteration is there before its checkpoint.
"""

from itertools import count
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from ivgr.callbacks.writer import writer_of
from ivgr.core.atomic_files import PART, part_of, publish, remove
from ivgr.core.errors import UserError
from ivgr.core.finite import find_not_finite
from ivgr.core.lightning_private import (
    dump_checkpoint,
    finished_iterations,
    is_last_iteration,
    validate_now,
    validation_follows,
)
from ivgr.core.sharding import is_sharded
from ivgr.distributed.collectives import gather

LAST, BEST = "last.ckpt", "best.ckpt"


class Checkpoints(Checkpoint):
    """Saves every so many optimizer updates, at the end, and whenever validation sets a record. A run that
    goes on from an iteration whose validation was broken off begins with it.

    Args:
        folder: Where checkpoints lie.
        every: Optimizer updates between two.
        keep: How many to keep, beside the best.
        best: The validation figure whose highest value makes the best.
    """

    # The shape of what a checkpoint keeps.
    state_shape = {"record": float}

    def __init__(self, folder: Path, every: int, keep: int, best: str) -> None:
        self.folder = folder
        self.every = every
        self.keep = keep
        self.best = best
        self.record = float("-inf")
        self.saved = 0
        self.unvalidated = False
        self.sets_record = False

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """UserError if no validation measures what the best checkpoint is chosen by."""
        known = [
            name for one in (module, *trainer.callbacks) for name in getattr(one, "validation_figures", ())
        ]
        if stage == "fit" and known and self.best not in known:
            raise UserError(
                f"checkpoint_best is {self.best}, which no validation measures: {', '.join(known)}"
            )

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.saved = trainer.global_step
        if self.sets_record and trainer.is_global_zero:
            self._link_best(trainer.ckpt_path)
        self.sets_record = False
        if self.unvalidated:
            validate_now(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_) -> None:
        self.unvalidated = validation_follows(trainer)
        over = trainer.should_stop or is_last_iteration(trainer)
        if over or trainer.global_step // self.every > self.saved // self.every:
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_step > self.saved:
            self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self.unvalidated, score = False, trainer.callback_metrics.get(self.best)
        if score is not None and score > self.record:
            self.record = float(score)
            self.sets_record = True
            self.save(trainer, best=True)
            self.sets_record = False

    def save(self, trainer: L.Trainer, best: bool = False) -> None:
        """All ranks must call it. UserError, and nothing is saved, if weights are not finite: what was
        saved before is worth more."""
        odd = next(filter(None, gather(_find_broken(trainer))), None)
        if odd is not None:
            raise UserError(
                f"the policy's weights are not finite after iteration {finished_iterations(trainer)} "
                f"(first in {odd}) and not saved; lower model.update.optimizer.lr, or use float32 weights"
            )
        if trainer.is_global_zero:
            remove(part_of(self._path(trainer)))  # of a killed run, perhaps of more ranks
        trainer.strategy.barrier()
        part, path = self._write(trainer)
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            self._publish(part, path, best)
        trainer.strategy.barrier()
        self.saved = trainer.global_step

    def save_alone(self, trainer: L.Trainer) -> bool:
        """Saves without the other ranks, on each rank that still can. Returns False for sharded weights,
        which no rank holds alone, and for weights that are not finite."""
        if is_sharded(trainer.strategy) or _find_broken(trainer) is not None:
            return False
        part, path = self._write(trainer)
        if trainer.is_global_zero:
            self._publish(part, path, best=False)
        return True

    def _write(self, trainer: L.Trainer) -> tuple[Path, Path]:
        """The checkpoint, aside; returns where it lies and where it belongs."""
        state = dump_checkpoint(trainer)
        path = self._path(trainer)
        part = part_of(path)
        writer_of(trainer).flush()
        if is_sharded(trainer.strategy):
            trainer.strategy.save_checkpoint(state, part)
        elif trainer.is_global_zero:
            # Lightning would hold a second copy in memory, and put a third into /tmp.
            self.folder.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(state, file)
        return part, path

    def _path(self, trainer: L.Trainer) -> Path:
        return self.folder / f"iteration-{finished_iterations(trainer):06d}.ckpt"

    def _publish(self, part: Path, path: Path, best: bool) -> None:
        if path.is_dir() or (part.is_dir() and path.exists()):
            # A file replaces another atomically, a folder cannot, and the links may name it.
            numbered = (path.with_suffix(f".{number}.ckpt") for number in count(2))
            path = next(name for name in numbered if not name.exists())
        publish(part, path)
        for name in (LAST, BEST) if best else (LAST,):
            _link(self.folder / name, path.name)
        self._forget_old()

    def _link_best(self, path: Path | str | None) -> None:
        """Ends what a run that was killed between the last checkpoint, which set a record, and the link
        best.ckpt has left undone."""
        last = self.folder / LAST
        if path is not None and last.exists() and Path(path).resolve() == last.resolve():
            _link(self.folder / BEST, last.resolve().name)
            self._forget_old()

    def _forget_old(self) -> None:
        linked = {(self.folder / name).resolve() for name in (LAST, BEST)}
        found = sorted(self.folder.glob("iteration-*.ckpt"), key=lambda one: one.stat().st_mtime)
        latest = {path.name.partition(".")[0]: path for path in found}  # of each iteration
        kept = linked | {path.resolve() for path in [*latest.values()][-self.keep :]}
        for path in (*found, *self.folder.glob(f"*{PART}")):
            if path.name.endswith(PART) or path.resolve() not in kept:
                remove(path)

    def state_dict(self) -> dict:
        return {
            "record": self.record,
            "unvalidated": self.unvalidated,
            "sets_record": self.sets_record,
        }

    def load_state_dict(self, state: dict) -> None:
        self.record = state["record"]
        self.unvalidated = state.get("unvalidated", False)
        self.sets_record = state.get("sets_record", False)


def _find_broken(trainer: L.Trainer) -> str | None:
    return find_not_finite(trainer.lightning_module.named_parameters())


def _link(link: Path, name: str) -> None:
    """Points `link` to its neighbour `name`; at every moment it is there."""
    part = part_of(link)
    remove(part)
    part.symlink_to(name)
    publish(part, link)
