"""One iteration of a recipe on the null GPU, by Lightning's own Trainer.

In: a `Recipe`. Out: the figures of its phases. What runs is what `ivgr fit` runs; rewards are 0 and 1 in
turn, and of micro-batches of equal shape the first two of each phase are run, whose figures stand for the
others.
"""

import resource
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import ParallelStrategy, Strategy
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._pytree import tree_map

from ivgr.core.finite import find_not_finite
from ivgr.core.lightning_private import dump_checkpoint
from ivgr.core.query import Query, rollouts_of
from ivgr.core.sharding import is_sharded
from ivgr.data.encode import Batch
from ivgr.data.quarantine import Quarantine
from ivgr.packing.prefix_tree import Pack, split_tree, tree_length
from ivgr.tools.rehearse.host_integers import HostIntegers
from ivgr.tools.rehearse.longest_queries import demonstrate, make_queries
from ivgr.tools.rehearse.phases import PhaseFigures, Phases
from ivgr.tools.rehearse.recipe import Recipe
from ivgr.tools.rehearse.rollout_phase import RehearsedEngine
from ivgr.tools.rehearse.stand_ins import RECIPE, stand_ins, write_nothing
from ivgr.tools.rehearse.unread_models import skeleton_readers
from ivgr.trainer.micro_batches import MicroBatcher

TWICE = 2  # micro-batches of a shape that are run: the first allocates gradients, the second adds to them


@dataclass
class Rehearsal:
    """figures: by phase, in the order of NAMES. longest_tree, longest_row: tokens of the largest tree, and of
    one response with its prompt. micro_batches: of an iteration, and run. steps: of decoding, and run with
    the model. together: branches that decode at a time. Bytes of each rank's main memory: host_weights, the
    weights of policy and reference after loading; host_batch, the pixels of an iteration's queries;
    host_peak, what the rehearsal itself has taken."""

    figures: dict[str, PhaseFigures]
    prompt: int = 0
    longest_tree: int = 0
    longest_row: int = 0
    queries: int = 0
    micro_batches: tuple[int, int] = (0, 0)
    steps: tuple[int, int] = (0, 0)
    together: int = 0
    host_weights: int = 0
    host_batch: int = 0
    host_peak: int = 0


def rehearse_recipe(recipe: Recipe) -> Rehearsal:
    """Runs one iteration, of a cold start two steps."""
    integers = HostIntegers()
    phases = Phases(integers)
    replaced = (*RECIPE, *skeleton_readers(recipe.layers))
    with tempfile.TemporaryDirectory() as folder, stand_ins(replaced), integers:
        if recipe.ranks > 1 or is_sharded(recipe.strategy):
            dist.init_process_group("fake", rank=0, world_size=recipe.ranks, store=FakeStore())
        watch = Watch(recipe, phases, Path(folder))
        trainer = L.Trainer(
            accelerator="cuda", devices=1, num_nodes=recipe.ranks // recipe.devices,
            plugins=[OneOfMany(recipe.ranks)],
            strategy=recipe.strategy if isinstance(recipe.strategy, Strategy) else recipe.strategy or "auto",
            callbacks=[watch], default_root_dir=folder, max_epochs=1, limit_val_batches=0, logger=False,
            limit_train_batches=2 if recipe.cold_start else 1, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        if isinstance(trainer.strategy, ParallelStrategy):  # the null GPU stands for all of a node
            trainer.strategy.parallel_devices = [torch.device("cuda", 0)] * recipe.devices
        trainer.fit(recipe.module, ColdStartData(watch) if recipe.cold_start else RehearsalData(watch))
    return watch.result()


class OneOfMany(LightningEnvironment):
    """Tells Lightning that this process is the first of `ranks`."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.ranks = ranks

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def world_size(self) -> int:
        return self.ranks

    def set_world_size(self, size: int) -> None:
        """Is set already."""


class RehearsalData(L.LightningDataModule):
    """Hands out the longest queries, which `watch` makes when the encoder is there."""

    def __init__(self, watch: "Watch") -> None:
        super().__init__()
        self.watch = watch
        self.quarantine = Quarantine(None, 1.0)

    def train_dataloader(self) -> "DrawnOnce":
        return DrawnOnce(self.watch.draw)


class ColdStartData(RehearsalData):
    """The same for a cold start."""

    total_steps = 2


class DrawnOnce:
    """An iterable of batches that `draw` makes."""

    def __init__(self, draw: Callable[[], Any]) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Any:
        return (self.draw() for _ in range(len(self)))


class Watch(L.Callback):
    """Measures each phase where the module and its parts run it."""

    def __init__(self, recipe: Recipe, phases: Phases, folder: Path) -> None:
        self.recipe, self.phases, self.folder = recipe, phases, folder
        self.engine: RehearsedEngine | None = None
        self.queries: list[Query] = []
        self.host_weights = 0

    def setup(self, trainer: L.Trainer, module: Any, stage: str) -> None:
        if not self.recipe.cold_start:
            module.engine = self.engine = RehearsedEngine(module.engine, self.phases, self.recipe.limit)
        module.make_parts = self.phases.wrap("load", module.make_parts)
        fill = self.phases.wrap("load", module.fill_weights)

        def fill_and_weigh() -> None:
            fill()
            models = (module.policy, getattr(module.reference, "model", None))
            self.host_weights = sum(map(_weigh_on_host, models))

        module.fill_weights = fill_and_weigh
        strategy: Any = trainer.strategy
        if is_sharded(strategy):
            strategy.split = self.phases.wrap("split", strategy.split)
        else:
            strategy.model_to_device = self.phases.wrap("load", strategy.model_to_device)

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        if self.recipe.cold_start:
            module.stepper.step = self.phases.wrap("optimizer", module.stepper.step)
            module.training_step = self.phases.wrap("update", module.training_step)
            self._economise(module.micro_batcher)
            return
        module.iterations = 1
        _as_after_an_iteration(module.optimizers().optimizer)
        step, update = module.rl_step, module.rl_step.update
        step.rollout_policy = self.phases.wrap("rollout_prefill", step.rollout_policy)
        step.scorer.score = _score
        step.resample, step.drop_zero_std = 0, False
        update.infer_reference = self.phases.wrap("reference", update.infer_reference)
        update.infer_policy = self.phases.wrap("old_logp", update.infer_policy)
        update.pack = self.phases.wrap("update", update.pack)
        update.run = self.phases.wrap("update", update.run)
        update.stepper.step = self.phases.wrap("optimizer", update.stepper.step)
        self._economise(update.micro_batcher)

    def _economise(self, micro_batcher: MicroBatcher) -> None:
        self.economy = FewMicroBatches(micro_batcher.run, self.phases)
        micro_batcher.run = self.economy

    def draw(self) -> Any:
        """A batch of the module's training step."""
        module, recipe = self.recipe.module, self.recipe
        self.queries = make_queries(module.encoder, recipe.mix, recipe.streams, recipe.ranks)
        if not recipe.cold_start:
            return Batch(self.queries, [], len(self.queries))
        engine: Any = module.engine
        longest = engine.sampling.max_new_tokens
        self.queries = [demonstrate(query, longest) for query in self.queries]
        return self.queries

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        with self.phases.measure("checkpoint"):
            find_not_finite(module.named_parameters())
            state = dump_checkpoint(trainer)
            if is_sharded(trainer.strategy):
                trainer.strategy.save_checkpoint(state, self.folder / "rehearsed.ckpt")
            else:
                write_nothing(state)

    def result(self) -> Rehearsal:
        engine = self.engine
        return Rehearsal(
            figures=self.phases.figures,
            prompt=max(len(query.prefix) + len(query.groups[0].instruction) for query in self.queries),
            longest_tree=max(map(tree_length, self.queries)),
            longest_row=max(tree_length(row) for query in self.queries for row in split_tree(query, 0)),
            queries=len(self.queries),
            micro_batches=(self.economy.seen, self.economy.ran),
            steps=(engine.steps, engine.run) if engine else (0, 0),
            together=engine.together if engine else 0,
            host_weights=self.host_weights,
            host_batch=_weigh_pixels(self.queries),
            host_peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
        )


class FewMicroBatches:
    """Stands for a `MicroBatcher.run` in which micro-batches of a shape that the phase has run TWICE are not
    run again: they take copies of the results, and their figures are added. In each mini-batch of an update
    the first of every shape is run all the same, for the gradients that the optimizer needs."""

    def __init__(self, run: Callable[..., list], phases: Phases) -> None:
        self.real = run
        self.phases = phases
        self.seen = self.ran = 0
        self.done: dict[tuple, list] = {}

    def __call__(self, packs: list[Pack], work: Callable[[Pack], Any]) -> list:
        phase, here = self.phases.running[-1], set()

        def work_or_copy(pack: Pack) -> Any:
            self.seen += 1
            known = (pack.ref_logp is None, pack.old_logp is None)  # without which a pass has nothing to do
            shape = (*pack.ids.shape, len(pack.targets), *known)
            first = shape not in here
            here.add(shape)
            done = self.done.setdefault((phase, shape), [])
            if len(done) == TWICE and not (first and phase == "update"):
                return self._copy(pack, *done[-1])
            counts, places = self.phases.counts(), self.phases.integers.places.copy()
            result = work(pack)
            self.phases.note_peak()
            self.ran += 1
            if len(done) < TWICE:
                more = self.phases.counts() - counts
                done.append((pack, result, more, self.phases.integers.places - places))
            return result

        return self.real(packs, work_or_copy)

    def _copy(self, pack: Pack, twin: Pack, result: Any, counts: Any, places: Any) -> Any:
        """The result of `twin` for `pack`, in memory of its own."""
        for name in ("ref_logp", "old_logp"):
            if getattr(pack, name) is None and (known := getattr(twin, name)) is not None:
                setattr(pack, name, known.clone())
        self.phases.multiply(counts, places, 1)
        return tree_map(lambda one: one.clone() if isinstance(one, torch.Tensor) else one, result)


def _as_after_an_iteration(optimizer: torch.optim.Optimizer) -> None:
    """Makes the state that an optimizer has from its first step on, which rollouts leave room for."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad()


def _weigh_on_host(model: torch.nn.Module | None) -> int:
    """Bytes of the parameters that lie in main memory."""
    weights = [] if model is None else [one for one in model.parameters() if one.device.type == "cpu"]
    return sum(weight.numel() * weight.itemsize for weight in weights)


def _weigh_pixels(queries: list[Query]) -> int:
    """Bytes of the pixels of `queries`, each of which has its own in a run."""
    pixels = [query.pixel_values for query in queries]
    return sum(one.numel() * one.itemsize for one in pixels if one is not None)


def _score(queries: list[Query], during_answers: Callable, during_reasoning: Callable, waiting: Any) -> list:
    """Has the signature of `Scorer.score`: rewards in turn, and what runs while a judge would read."""
    during_answers()
    during_reasoning()
    for index, rollout in enumerate(rollouts_of(queries)):
        rollout.reward = float(index % 2)
    return []
