"""The LightningModule of reinforcement learning. It owns the policy and the frozen reference and hands
`RLStep` its parts; one `training_step` is one iteration."""

import time
from typing import Any, cast

import torch
from jsonargparse import lazy_instance

from ivgr.core.query import Query
from ivgr.core.seeding import derive_seed, run_seed
from ivgr.core.settings import PositiveInt, checked
from ivgr.data.encode import Batch, EncodingConfig
from ivgr.distributed.collectives import any_rank, gather, gather_lists
from ivgr.evaluation.held_out import HeldOutFigures, tags_of
from ivgr.judge import Judge
from ivgr.judge.judge_timeout import with_judge_timeout
from ivgr.models.pretrained import PolicySource
from ivgr.models.trainable import TrainableConfig
from ivgr.rewards.archive import Archive
from ivgr.rewards.rewards import Rewards
from ivgr.rewards.scorer import Scorer
from ivgr.rollout.engine_timeout import with_engine_timeout
from ivgr.rollout.transformers_engine import RolloutEngine, TransformersEngine
from ivgr.trainer.base_module import PolicyModule
from ivgr.trainer.nonfinite_guard import GuardConfig
from ivgr.trainer.policy_update import PolicyUpdate
from ivgr.trainer.reference import FrozenReference, Reference
from ivgr.trainer.rl_step import RLStep
from ivgr.trainer.update_config import UpdateConfig


@checked("model.")
class IVGR(PolicyModule):
    """Dual-stream GRPO with a consistency reward and a rollout archive.

    Args:
        policy: HF directory, hub id or "tiny"; or a class with `load() -> (model, processor)`.
        trainable: Which of its parameters are trained.
        reference: Where the frozen reference comes from.
        encoding: Instructions of the streams, longest prompt.
        engine: Rollout engine, and how it samples.
        rewards: Reward terms and weights; the archive of reference reasoning.
        judge: Decides what no rule can; needed where a reward term of any weight asks it (accuracy,
            single_accuracy, consistency). Without one an answer that no rule matches is wrong.
        update: Mini-batches, loss, optimizer.
        iterations: RL iterations of the run.
        guard: When a run that goes wrong is stopped.
    """

    kind = "rl"
    state_shape = PolicyModule.state_shape | {"iteration": int, "archive": Archive.state_shape}
    length = "model.iterations"

    def __init__(
        self,
        policy: PolicySource | str = "tiny",
        trainable: TrainableConfig = TrainableConfig(),
        reference: FrozenReference = lazy_instance(FrozenReference),
        encoding: EncodingConfig = EncodingConfig(),
        engine: RolloutEngine = lazy_instance(TransformersEngine),
        rewards: Rewards = lazy_instance(Rewards),
        judge: Judge | None = None,
        update: UpdateConfig = UpdateConfig(),
        iterations: PositiveInt = 360,
        guard: GuardConfig = GuardConfig(),
    ) -> None:
        judge = rewards.choose_judge(judge)
        super().__init__(policy, trainable, encoding, update, guard)
        self.engine = with_engine_timeout(engine, guard.engine_timeout)
        self.reference_source = reference
        self.rewards = rewards
        self.archive = rewards.archive
        self.judge = with_judge_timeout(judge, guard.judge_timeout)
        self.update = update
        self.iterations = iterations
        self.total_updates = iterations * update.mini_batches * update.epochs
        self.iteration = 0
        self.everyone: list[Query] = []
        self.idle_since = self.waited = 0.0
        self.rollback_snapshot: tuple[dict, dict] | None = None
        self.figures = HeldOutFigures(self.judge)

    @property
    def validation_figures(self) -> list[str]:
        return tags_of(self.validation_metrics())

    def load_reference(self) -> Reference:
        return self.reference_source.load(self.policy, self._weights)

    def on_fit_start(self) -> None:
        update = PolicyUpdate(
            policy=self.policy,
            reference=cast(Reference, self.reference),
            config=self.update,
            stepper=self.create_optimizer_step(),
            temperature=self.engine.sampling.temperature,
            guard=self.guard,
            pad_with_dummy_packs=self.pad_with_dummy_packs,
        )
        self.rl_step = RLStep(
            policy=self.policy,
            tokenizer=self.processor.tokenizer,
            engine=self.engine,
            scorer=Scorer(self.rewards, self.judge),
            update=update,
            resample=self.update.resample,
            drop_zero_std=self.update.drop_zero_std,
            rollout_policy=self.rollout_policy,
            check_preempted=lambda: self.check_preempted(),
        )

    def on_train_start(self) -> None:
        self.idle_since = time.perf_counter()

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Takes the time that the iteration waited for its batch: this hook is the first one after the batch
        has arrived, before the callbacks' work."""
        self.waited = time.perf_counter() - self.idle_since
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Counts the samples that all ranks have rejected; UserError if their share is too large."""
        self.metrics = {"time/data_wait": self.waited}
        self.rollback_snapshot = self.archive.state_dict(), self.trainer.datamodule.quarantine.state_dict()
        quarantine = self.trainer.datamodule.quarantine
        quarantine.add(gather_lists(batch.rejected), sum(gather(batch.seen)))
        self.metrics |= quarantine.metrics()

    def training_step(self, batch: Batch, _: int) -> None:
        """Runs one iteration; if no rank has a query, only the data advances."""
        seed, self.everyone = derive_seed(run_seed(), "rollout", self.iteration, 0), []
        if any_rank(bool(batch.queries), self.device):
            self.metrics |= self.rl_step.run(batch.queries, seed)
            self.everyone = self.rl_step.everyone
        self.metrics["optim/lr"] = self.optimizers().param_groups[0]["lr"]
        self.iteration += 1
        self.rollback_snapshot = None
        if self.iteration >= self.iterations:
            self.trainer.should_stop = True

    def roll_back(self) -> None:
        """Restores the archive and the counts of rejected samples after an abandoned iteration."""
        if self.rollback_snapshot is not None:
            archive, quarantine = self.rollback_snapshot
            self.archive.load_state_dict(archive)
            self.trainer.datamodule.quarantine.load_state_dict(quarantine)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.idle_since = time.perf_counter()

    def validation_step(self, batch: Batch, _: int) -> None:
        if batch.queries:
            self.engine.answer(self.rollout_policy(), self.processor.tokenizer, batch.queries)
            self.figures.update(batch.queries)

    def on_validation_epoch_start(self) -> None:
        self.rollout_policy()
        self.figures = HeldOutFigures(self.judge, self.validation_metrics()).to(self.device)

    def on_validation_epoch_end(self) -> None:
        """Logs the figures for checkpoint_best; `ValidationSummary` prints them and writes them to the
        loggers."""
        self.join_answers()
        for stream, figures in self.figures.compute().items():
            named = {f"val/{stream}/{name}": value for name, value in figures.items()}
            self.log_dict(named, logger=False)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["ivgr"] |= {"iteration": self.iteration, "archive": self.archive.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        super().on_load_checkpoint(checkpoint)
        self.iteration = checkpoint["ivgr"]["iteration"]
        self.archive.load_state_dict(checkpoint["ivgr"]["archive"])
