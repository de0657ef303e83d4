"""The result of a run: held-out figures before the first iteration and after the last, printed as a table and
written to summary.json and to the loggers."""

import time
from collections.abc import Iterable

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.table import Table

from ivgr.callbacks.ending import write_summary
from ivgr.callbacks.hparams import enter_figures
from ivgr.callbacks.protocol import AnsweringModule, ColdStartModule, RLModule
from ivgr.callbacks.writer import writer_of
from ivgr.core.checkpoint_file import Either
from ivgr.core.printable import print_table
from ivgr.core.seeding import run_seed
from ivgr.data.encode import Batch
from ivgr.evaluation.held_out import FIGURES, Figures, HeldOutFigures
from ivgr.plotting.tags import HELD_OUT, WHOLE, Name

STATE_KEY = "BeforeAfter"  # under which checkpoints have always kept what a ValidationSummary knows


class ValidationSummary(L.Callback):
    """Evaluates greedily on data.val; the figures before training and the seconds spent
    travel in checkpoints, so that a resumed run reports the whole run."""

    # The shape of what a checkpoint keeps; no figures, where the first evaluation was broken off.
    state_shape = {
        "before": Either((type(None), {stream: {str: float} for stream in FIGURES})),
        "seconds": float,
    }

    @property
    def state_key(self) -> str:
        """Not the name of the class, which may change."""
        return STATE_KEY

    def __init__(self) -> None:
        self.before: Figures | None = None
        self.validated: tuple[int, Figures] | None = None
        self.seconds = 0.0
        self.since = time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, module: RLModule) -> None:
        self.since = time.perf_counter()
        if self.before is None:
            self.before = evaluate(module, trainer.datamodule.val_dataloader())
            write_figures(trainer, self.before, module.iteration)

    def on_validation_end(self, trainer: L.Trainer, module: RLModule) -> None:
        """Writes the figures; those of a whole validation after the last iteration are the run's."""
        if trainer.sanity_checking:
            return
        figures = module.figures.compute()
        write_figures(trainer, figures, module.iteration)
        alone = trainer.state.fn == TrainerFn.VALIDATING
        if alone and trainer.is_global_zero:
            print_measured(trainer)
        if not alone and trainer.limit_val_batches == 1.0:
            self.validated = module.iteration, figures

    def on_train_end(self, trainer: L.Trainer, module: RLModule) -> None:
        if module.iteration < module.iterations:
            return
        if self.validated is None or self.validated[0] != module.iteration:
            self.validated = module.iteration, evaluate(module, trainer.datamodule.val_dataloader())
            write_figures(trainer, self.validated[1], module.iteration)
        after = self.validated[1]
        summary = {
            "seed": run_seed(),
            "iterations": module.iteration,
            "seconds": round(self._elapsed(), 1),
            "before": self.before,
            "after": after,
        }
        write_summary(trainer, summary)
        if trainer.is_global_zero:
            print_change(summary)

    def state_dict(self) -> dict:
        return {"before": self.before, "seconds": self._elapsed()}

    def load_state_dict(self, state: dict) -> None:
        self.before = state["before"]
        self.seconds = state["seconds"]

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self.since


class ColdStartSummary(L.Callback):
    """Once a cold start has ended: its held-out figures, and its policy as a HF directory."""

    def on_fit_end(self, trainer: L.Trainer, module: ColdStartModule) -> None:
        figures = evaluate(module, trainer.datamodule.val_dataloader())
        module.save_policy(module.export_folder)
        write_summary(trainer, {"seed": run_seed(), "iterations": module.iterations, "after": figures})
        if trainer.is_global_zero:
            print_figures(figures)
            print(f"the model is in {module.export_folder}")


@torch.no_grad()
def evaluate(module: AnsweringModule, batches: Iterable[Batch]) -> Figures:
    """Held-out figures of both streams, the same on all ranks. No random number is drawn."""
    figures = HeldOutFigures(module.judge, module.validation_metrics()).to(module.device)
    policy = module.rollout_policy()
    for batch in batches:
        if batch.queries:
            module.engine.answer(policy, module.processor.tokenizer, batch.queries)
            figures.update(batch.queries)
    module.join_answers()
    return figures.compute()


def write_figures(trainer: L.Trainer, figures: Figures, iteration: int) -> None:
    """Writes the figures of all held-out queries: for the charts, and beside the run's settings."""
    writer = writer_of(trainer)
    writer.scalars(name_figures(figures, WHOLE), iteration)
    enter_figures(writer, figures, iteration)
    writer.flush()


def name_figures(figures: Figures, of: str) -> dict[Name, float]:
    """Returns the figures by tag and stream; `of` is SUBSET or WHOLE."""
    return {
        Name(f"{HELD_OUT}/{name}_{of}", stream): value
        for stream, values in figures.items()
        for name, value in values.items()
    }


def print_change(summary: dict) -> None:
    """The before/after table in the terminal."""
    table = Table(
        title=f"held-out queries, greedy · seed {summary['seed']} · {summary['iterations']} iterations"
    )
    for column in ("stream", "figure", "before", "after", "change"):
        table.add_column(column, justify="left" if column in ("stream", "figure") else "right")
    for stream, figures in summary["before"].items():
        for name in figures | summary["after"][stream]:
            # Only "unjudged" may be absent, where it is zero.
            before, after = (summary[when][stream].get(name, 0.0) for when in ("before", "after"))
            table.add_row(stream, name, f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}")
    Console(width=88).print(table)


def print_measured(trainer: L.Trainer) -> None:
    """Prints the figures of `ivgr validate` by the names that checkpoint_best takes."""
    measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
    print_table(("figure", "value"), [(name, f"{value:.4f}") for name, value in measured.items()])


def print_figures(figures: Figures) -> None:
    """One evaluation in the terminal."""
    table = Table("stream", "figure", "value", title="held-out queries, greedy")
    for stream, values in figures.items():
        for name, value in values.items():
            table.add_row(stream, name, f"{value:.3f}")
    Console(width=88).print(table)
