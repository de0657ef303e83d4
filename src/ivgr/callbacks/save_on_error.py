"""A run that is stopped, by a `UserError` or by SIGTERM, leaves its last finished iteration as
last.ckpt."""

import lightning as L

from ivgr.callbacks.checkpoints import Checkpoints, done
from ivgr.core.errors import Preempted, UserError


class Rescue(L.Callback):
    """Saves when training is stopped, and adds to the message how to go on.

    Args:
        checkpoints: What saves.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.training = False

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.training = True

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Of a UserError without the other ranks, which may not have failed."""
        if not (self.training and isinstance(exception, UserError | Preempted)):
            return
        if hasattr(module, "roll_back"):
            module.roll_back()
        _count_as_not_begun(trainer)
        saved, finished = True, done(trainer)
        if isinstance(exception, Preempted):
            self.checkpoints.save(trainer)
        else:
            saved = self.checkpoints.save_alone(trainer)
        if not saved:
            advice = (
                f"stopped after iteration {finished}; go on from the last checkpoint with --ckpt_path last"
            )
        else:
            advice = f"stopped after iteration {finished}; go on with --ckpt_path last"
        exception.add_note(advice)


def _count_as_not_begun(trainer: L.Trainer) -> None:
    """Of the iteration that is given up: Lightning has counted that it began, but not that it ended."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    progress.total.reset_on_restart()
    progress.current.reset_on_restart()
