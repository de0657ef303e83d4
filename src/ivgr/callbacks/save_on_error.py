"""A run that is stopped, by a `UserError` or by SIGTERM, leaves its last finished iteration as
last.ckpt."""

import lightning as L

from ivgr.callbacks.checkpoints import Checkpoints
from ivgr.callbacks.protocol import TrainedModule
from ivgr.core.errors import Preempted, UserError
from ivgr.core.lightning_private import finished_iterations, forget_begun_iteration


class Rescue(L.Callback):
    """Saves when training is stopped, and adds to the message how to go on.

    Args:
        checkpoints: What saves.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.training = False

    def on_train_start(self, trainer: L.Trainer, module: TrainedModule) -> None:
        self.training = True

    def on_exception(self, trainer: L.Trainer, module: TrainedModule, exception: BaseException) -> None:
        """Saves after a UserError without the other ranks, which may not have failed."""
        if not (self.training and isinstance(exception, UserError | Preempted)):
            return
        if hasattr(module, "roll_back"):  # a LightningModule that is not ours has none
            module.roll_back()
        forget_begun_iteration(trainer)
        saved, finished = True, finished_iterations(trainer)
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
