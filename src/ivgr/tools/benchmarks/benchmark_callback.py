"""Benchmarks while training: at validation, some rows of each are asked in each mode.

In: files as `ivgr evaluate` takes them. Out: bench/NAME/MODE/accuracy in the loggers, the same on
all ranks, which share the rows.
"""

from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import lightning as L
import numpy as np
import torch

from ivgr.callbacks.protocol import AnsweringModule, RLModule
from ivgr.callbacks.writer import writer_of
from ivgr.core.errors import UserError
from ivgr.core.lightning_private import key_with_settings
from ivgr.core.seeding import derive_seed
from ivgr.core.settings import PositiveInt, Seed, checked
from ivgr.distributed.collectives import gather_lists
from ivgr.judge import Judge
from ivgr.tools.benchmarks.benchmark_runner import BenchmarkRunner
from ivgr.tools.benchmarks.benchmarks import Benchmark, find_benchmark
from ivgr.tools.benchmarks.find_files import find_files, open_rows
from ivgr.tools.benchmarks.rows import RowFile
from ivgr.tools.benchmarks.tables import score_of
from ivgr.tools.inference.crops import Cropping
from ivgr.tools.inference.mode_names import LAST, Mode
from ivgr.tools.inference.modes import respond


@checked("Benchmarks: ")
class Benchmarks(L.Callback):
    """Evaluates the policy on benchmarks, as `ivgr evaluate` does, whenever it is validated
    (trainer.val_check_interval).

    Args:
        benchmark: Names, such as vstar hrbench4k.
        data: A benchmark's .tsv or .parquet, or a folder with such.
        mode: "text", "grounded", "tool".
        rows: Rows of each benchmark, drawn once by `seed`; null for all.
        seed: Seed of that draw.
        every: From the first validation on, every so many.
        batch: Rows asked together.
        openly: Ask without listing the options.
        judge: Decides where no rule finds an answer; without one that is wrong.
        cropping: How boxes become crops in tool mode.
    """

    # The shape of what a checkpoint keeps.
    state_shape = {"seen": int}
    joins_late = True

    def __init__(
        self,
        benchmark: Sequence[str],
        data: str,
        mode: Sequence[Mode] = ("text",),
        rows: PositiveInt | None = 256,
        seed: Seed = 0,
        every: PositiveInt = 1,
        batch: PositiveInt = 64,
        openly: bool = False,
        judge: Judge | None = None,
        cropping: Cropping = Cropping(),
    ) -> None:
        if not benchmark or not mode:
            raise UserError("Benchmarks: name a benchmark and a mode")
        self.benchmarks = {name: find_benchmark(name, "Benchmarks.benchmark") for name in benchmark}
        self.data = Path(data)
        self.modes = tuple(dict.fromkeys(mode))
        self.rows = rows
        self.seed = seed
        self.every = every
        self.batch = batch
        self.openly = openly
        self.judge = judge
        self.cropping = cropping
        self.seen = 0

    @property
    def validation_figures(self) -> list[str]:
        """The names of what it measures."""
        return [_figure(name, mode) for name in self.benchmarks for mode in self.modes]

    @property
    def state_key(self) -> str:
        return key_with_settings(self, data=str(self.data), benchmark=[*self.benchmarks], mode=self.modes)

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Opens and checks every file; UserError names what is missing or broken."""
        if not isinstance(module, AnsweringModule):
            raise UserError(f"Benchmarks: {type(module).__name__} has no rollout engine to answer with")
        if self.data.is_file() and len(self.benchmarks) > 1:
            raise UserError(f"Benchmarks.data: {self.data} is one file, for one benchmark; give their folder")
        found = {name: find_files(self.data, one) for name, one in self.benchmarks.items()}
        self.files = {name: open_rows(paths, self.benchmarks[name]) for name, paths in found.items()}

    def on_validation_epoch_end(self, trainer: L.Trainer, module: RLModule) -> None:
        self.seen += 1
        if trainer.sanity_checking or (self.seen - 1) % self.every:
            return
        for name, file in self.files.items():
            numbers = draw_rows(file.total, self.rows, self.seed)[trainer.global_rank :: trainer.world_size]
            for mode in self.modes:
                lines = gather_lists(self._ask(module, self.benchmarks[name], mode, file, numbers))
                figure, score = _figure(name, mode), score_of(lines, self.benchmarks[name])
                module.log(figure, score, logger=False)  # for checkpoint_best
                writer_of(trainer).scalar(figure, score, module.iteration)

    @torch.no_grad()
    def _ask(
        self, module: AnsweringModule, benchmark: Benchmark, mode: Mode, file: RowFile, numbers: list[int]
    ) -> list[dict]:
        """Returns the journal lines of the rows `numbers`."""
        policy = module.rollout_policy()
        examination = BenchmarkRunner(
            benchmark,
            partial(respond, policy, module.encoder, module.engine, mode=mode, cropping=self.cropping),
            module.encoding.prompts.instruction(LAST[mode]),
            self.judge,
            self.batch,
            self.openly,
        )
        rows, lines = file.read(frozenset(numbers)), []
        while batch := list(islice(rows, self.batch)):
            lines += examination.examine(batch)
        module.join_answers()
        return lines

    def state_dict(self) -> dict:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict) -> None:
        self.seen = state["seen"]


def _figure(benchmark: str, mode: Mode) -> str:
    return f"bench/{benchmark}/{mode}/accuracy"


def draw_rows(total: int, count: int | None, seed: int) -> list[int]:
    """Draws `count` of the numbers below `total`, in order; all if there are no more or count is None."""
    if count is None or count >= total:
        return list(range(total))
    rng = np.random.default_rng(derive_seed("benchmark rows", seed))
    return sorted(rng.choice(total, count, replace=False).tolist())
