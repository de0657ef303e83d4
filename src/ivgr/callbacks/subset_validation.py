"""Held-out figures while the run goes on: a fixed subset that costs little, several times in a run."""

from typing import Any

import lightning as L

from ivgr.callbacks.protocol import RLModule
from ivgr.callbacks.validation_summary import evaluate, name_figures
from ivgr.callbacks.writer import writer_of
from ivgr.plotting.tags import SUBSET


class SubsetValidation(L.Callback):
    """Answers the first held-out queries greedily before the first iteration and then `times` times in
    equal distances, the last time after the last iteration. No random number is drawn: the run stays what
    it would have been. Whole validations are `ValidationSummary`'s.

    Args:
        times: Times in a run; 0 for never.
        queries: How many of data.val's paired queries, from the first on.
    """

    def __init__(self, times: int, queries: int) -> None:
        self.times = times
        self.queries = queries

    def on_train_batch_start(self, trainer: L.Trainer, module: RLModule, batch: Any, batch_idx: int) -> None:
        """Before the next iteration rather than after the last: what has ended is then in a checkpoint
        that is whole, if the judge fails here."""
        self._validate(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: RLModule) -> None:
        self._validate(trainer, module)

    def _validate(self, trainer: L.Trainer, module: RLModule) -> None:
        if module.iteration not in iterations_of(self.times, module.iterations):
            return
        figures = evaluate(module, trainer.datamodule.first_held_out(self.queries))
        getattr(module.judge, "report", dict)()  # so that what it reports next is of training alone
        writer = writer_of(trainer)
        writer.scalars(name_figures(figures, SUBSET), module.iteration)
        writer.flush()


def iterations_of(times: int, iterations: int) -> set[int]:
    """Iterations after which there is a validation: 0 and the last one, and what lies between."""
    return {round(iterations * number / times) for number in range(times + 1)} if times else set()
