"""A run that ends by a `UserError` leaves its last finished iteration as last.ckpt."""

from pathlib import Path

import lightning as L

from ivgr.errors import UserError


class Rescue(L.Callback):
    """Saves when a UserError stops training, and adds to its message how to go on.

    Args:
        folder: Where checkpoints lie.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "last.ckpt"
        self.training = False

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.training = True

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Without a barrier, as Trainer.save_checkpoint has it: the other ranks may not fail."""
        if not (self.training and isinstance(exception, UserError)):
            return
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        trainer.strategy.save_checkpoint(checkpoint, self.path)
        done = trainer.fit_loop.epoch_loop.batch_progress.total.processed
        if done == getattr(module, "iterations", None):
            advice = "training is complete: ivgr validate --ckpt_path last gives its figures"
        else:
            advice = f"stopped after iteration {done}; go on with --ckpt_path last"
        exception.add_note(advice)
