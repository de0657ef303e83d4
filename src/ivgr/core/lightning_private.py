"""All uses of undocumented parts of Lightning, and the only place for them.

tests/core/test_lightning_private.py holds each function to what it is used for, so that a new version of
Lightning that has changed one fails there first.
"""

from typing import Any

import lightning as L
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy


def finished_iterations(trainer: L.Trainer) -> int:
    """Batches whose training step has ended, those before a restart included."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed


def saved_iterations(fit_loop: dict[str, Any]) -> int:
    """Returns the same count from a checkpoint's state of the fit loop."""
    return fit_loop["epoch_loop.batch_progress"]["total"]["processed"]


def is_last_iteration(trainer: L.Trainer) -> bool:
    """Whether the data has no batch after the one that ends now."""
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def forget_begun_iteration(trainer: L.Trainer) -> None:
    """Makes Lightning forget an abandoned batch, which it has counted as begun but not as ended."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    progress.total.reset_on_restart()
    progress.current.reset_on_restart()


def validation_follows(trainer: L.Trainer) -> bool:
    """Whether the iteration that ends now is validated before the next."""
    loop: Any = trainer.fit_loop
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def validate_now(trainer: L.Trainer) -> None:
    """Runs the validation that the training loop would have run after the last iteration before a restart."""
    loop = trainer.fit_loop.epoch_loop
    if loop.restarted_on_train_batch_end:
        loop.batch_progress.increment_completed()
        loop.reset_restart_stage()  # which would count the iteration again
    loop.val_loop.restarting, trainer.validating = False, True
    loop.val_loop.run()
    trainer.training = True


def dump_checkpoint(trainer: L.Trainer) -> dict[str, Any]:
    """Returns what Lightning would save, without saving it; all ranks must call it."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def cluster_environment(trainer: L.Trainer) -> ClusterEnvironment | None:
    """Returns the environment that started the processes: SLURM, torchrun, or Lightning itself."""
    return trainer._accelerator_connector.cluster_environment


def spread_data_over_all_ranks(strategy: ModelParallelStrategy) -> None:
    """Puts all ranks along the data axis, of which the strategy otherwise makes as many as nodes."""
    strategy._data_parallel_size = strategy.num_nodes * strategy.num_processes


def key_with_settings(callback: L.Callback, **settings: object) -> str:
    """The key of a callback's state in checkpoints, by class and `settings`, so that several of a class
    are told apart."""
    return callback._generate_state_key(**settings)


def has_trainer(module: L.LightningModule) -> bool:
    """`module.trainer` raises where there is none."""
    return module._trainer is not None


class IgnoresCheckpointSettings:
    """A mixin for a LightningCLI whose settings no checkpoint changes. Lightning would read hyperparameters
    from any file that `--ckpt_path` names."""

    def _parse_ckpt_path(self) -> None:
        pass


class RunsNothing:
    """A mixin for a LightningCLI that only reads a config and does not run the subcommand."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass
