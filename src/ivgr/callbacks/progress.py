"""The run in the terminal: a progress bar with the figures that matter."""

from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ivgr.callbacks.protocol import RLModule
from ivgr.core.printable import progress_bar

SHOWN = {
    "grounded/reward/accuracy/mean": "acc b",
    "textual/reward/accuracy/mean": "acc t",
    "grounded/reward/box/mean": "box",
    "textual/reward/consistency/mean": "cons",
    "policy/kl": "kl",
}
# Terms of a stream that `SHOWN` shows, or leaves out on purpose. Others are the user's own.
KNOWN = ("total", "format", "accuracy", "box", "validity", "consistency")


class IterationBar(L.Callback):
    """A rich bar over the run's iterations; without a terminal, a line every `every`."""

    def __init__(self, every: int = 10) -> None:
        self.every = every
        self.console = Console()

    def on_train_start(self, trainer: L.Trainer, module: RLModule) -> None:
        if not trainer.is_global_zero:
            return
        self.bar = progress_bar(
            self.console,
            TextColumn("iteration"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self.task = self.bar.add_task("", total=module.iterations, completed=module.iteration, figures="")
        self.bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: RLModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        shown = SHOWN | own_terms(module.metrics)
        figures = "  ".join(
            f"{short} {module.metrics[name]:.3g}" for name, short in shown.items() if name in module.metrics
        )
        self.bar.update(self.task, completed=module.iteration, figures=figures)
        if not self.console.is_terminal and module.iteration % self.every == 0:
            print(f"iteration {module.iteration}/{module.iterations}  {figures}", flush=True)

    def on_train_end(self, trainer: L.Trainer, module: RLModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, module: RLModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if getattr(self, "bar", None):
            self.bar.stop()


def own_terms(metrics: dict[str, float]) -> dict[str, str]:
    """The means of a user's own reward terms, by metric: what to call each."""
    found = {}
    for metric in metrics:
        stream, _, rest = metric.partition("/reward/")
        term, _, figure = rest.partition("/")
        if figure == "mean" and term not in KNOWN:
            found[metric] = f"{term} {stream[0]}"
    return found
