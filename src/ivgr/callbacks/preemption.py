"""SIGTERM, as clusters send it before they take a machine away, ends a run with a checkpoint."""

import signal

import lightning as L
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment

from ivgr.callbacks.protocol import TrainedModule
from ivgr.core.errors import Preempted
from ivgr.core.lightning_private import cluster_environment
from ivgr.distributed.collectives import any_rank


class Preemption(L.Callback):
    """Notes SIGTERM (under SLURM also the signal that announces a requeue) during training.

    The ranks agree on it before an iteration, and within one as long as its update has not begun;
    such an iteration is given up and is done again by the resumed run. A second signal changes
    nothing.
    """

    def __init__(self) -> None:
        self.noted = False

    def on_train_start(self, trainer: L.Trainer, module: TrainedModule) -> None:
        """Replaces Lightning's signal handlers, which save and communicate wherever they interrupt."""
        self.noted = False
        module.check_preempted = lambda: self.raise_if_noted(trainer)
        for number in _signals(trainer):
            signal.signal(number, self._note)

    def on_train_batch_start(self, trainer: L.Trainer, module: TrainedModule, *_) -> None:
        self.raise_if_noted(trainer)

    def on_train_end(self, trainer: L.Trainer, module: TrainedModule) -> None:
        for number in _signals(trainer):
            signal.signal(number, signal.SIG_DFL)

    def raise_if_noted(self, trainer: L.Trainer) -> None:
        """Preempted if any rank has noted the signal; all ranks must call it."""
        if any_rank(self.noted, trainer.strategy.root_device):
            raise Preempted(_code(trainer))

    def _note(self, *_) -> None:
        self.noted = True


def _signals(trainer: L.Trainer) -> list[int]:
    environment = cluster_environment(trainer)
    requeue = [environment.requeue_signal] if isinstance(environment, SLURMEnvironment) else []
    return [signal.SIGTERM, *filter(None, requeue)]


def _code(trainer: L.Trainer) -> int:
    """143; but 0 for a process that Lightning has started, which would kill rank 0 otherwise."""
    ours = isinstance(cluster_environment(trainer), LightningEnvironment)
    return 0 if ours and not trainer.is_global_zero else 128 + signal.SIGTERM
