"""Checkpoints: written aside and renamed, so that each appears whole or not at all.

CHECKPOINTS/iteration-000150.ckpt is a file, or a folder where weights are sharded; last.ckpt and
best.ckpt are links to two of them.
"""

import os
import shutil
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from ivgr.distributed.ranks import gather
from ivgr.distributed.strategy import FSDP2
from ivgr.errors import UserError
from ivgr.finite import find_not_finite

LAST, BEST, PART = "last.ckpt", "best.ckpt", ".part"


class Checkpoints(Checkpoint):
    """Saves every so many optimizer updates, at the end, and whenever validation sets a record.

    Args:
        folder: Where checkpoints lie.
        every: Optimizer updates between two.
        keep: How many to keep, beside the best.
        best: The validation figure whose highest value makes the best.
    """

    # The shape of what a checkpoint keeps.
    state_shape = {"record": float}

    def __init__(self, folder: Path, every: int, keep: int, best: str) -> None:
        self.folder, self.every, self.keep, self.best = folder, every, keep, best
        self.record = float("-inf")
        self.saved = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.saved = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_) -> None:
        over = trainer.should_stop or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if over or trainer.global_step // self.every > self.saved // self.every:
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_step > self.saved:
            self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        score = trainer.callback_metrics.get(self.best)
        if trainer.state.fn == TrainerFn.FITTING and score is not None and score > self.record:
            self.record = float(score)
            self.save(trainer, best=True)

    def save(self, trainer: L.Trainer, best: bool = False) -> None:
        """All ranks must call it. UserError, and nothing is saved, if weights are not finite: what was
        saved before is worth more."""
        odd = next(filter(None, gather(_find_broken(trainer))), None)
        if odd is not None:
            raise UserError(
                f"the policy's weights are not finite after iteration {done(trainer)} (first in {odd}) and not "
                "saved; lower model.optimizer.lr, or use float32 weights"
            )
        trainer.strategy.barrier()
        part, path = self._write(trainer)
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            self._publish(part, path, best)
        trainer.strategy.barrier()
        self.saved = trainer.global_step

    def save_alone(self, trainer: L.Trainer) -> bool:
        """The same without the other ranks, on each rank that still can; False for sharded weights,
        which no rank has alone, and for weights that are not finite."""
        if isinstance(trainer.strategy, FSDP2) or _find_broken(trainer) is not None:
            return False
        part, path = self._write(trainer)
        if trainer.is_global_zero:
            self._publish(part, path, best=False)
        return True

    def _write(self, trainer: L.Trainer) -> tuple[Path, Path]:
        """The checkpoint, aside; returns where it lies and where it belongs."""
        state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        path = self.folder / f"iteration-{done(trainer):06d}.ckpt"
        part = path.with_name(path.name + PART)
        trainer.strategy.save_checkpoint(state, part)
        return part, path

    def _publish(self, part: Path, path: Path, best: bool) -> None:
        _remove(path)
        os.replace(part, path)
        for name in (LAST, BEST) if best else (LAST,):
            _link(self.folder / name, path.name)
        kept = {(self.folder / name).resolve() for name in (LAST, BEST)}
        ours = sorted(self.folder.glob("iteration-*.ckpt"), key=lambda one: one.stat().st_mtime)
        for old in [*ours[: -self.keep], *self.folder.glob(f"*{PART}")]:
            if old.resolve() not in kept:
                _remove(old)

    def state_dict(self) -> dict:
        return {"record": self.record}

    def load_state_dict(self, state: dict) -> None:
        self.record = state["record"]


def _find_broken(trainer: L.Trainer) -> str | None:
    return find_not_finite(trainer.lightning_module.named_parameters())


def done(trainer: L.Trainer) -> int:
    """Iterations that are finished."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed


def _link(link: Path, name: str) -> None:
    """Points `link` to its neighbour `name`; at every moment it is there."""
    part = link.with_name(link.name + PART)
    _remove(part)
    part.symlink_to(name)
    os.replace(part, link)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
