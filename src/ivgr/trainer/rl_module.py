"""The LightningModule of reinforcement learning: owns the policy and the frozen reference, hands the
iteration its parts, and one `training_step` is one iteration."""

import time
from collections.abc import Callable, Sequence

from jsonargparse import lazy_instance
from lightning.pytorch.trainer.states import TrainerFn

from ivgr.core.prompts import Prompts
from ivgr.core.seeding import derive_seed, run_seed
from ivgr.core.settings import NonNegativeInt, PositiveFloat, PositiveInt, checked
from ivgr.data.encode import Batch
from ivgr.distributed.collectives import gather, gather_lists
from ivgr.evaluation.held_out import HeldOutFigures, ValidationMetric, tags_of
from ivgr.judge import Judge
from ivgr.judge.judge_timeout import patient_judge
from ivgr.models.lora import Adapter
from ivgr.models.pretrained import PolicySource
from ivgr.models.trainable import Part, TrainingForm
from ivgr.packing.prefix_tree import Layout
from ivgr.rewards.archive import Archive
from ivgr.rewards.rewards import Rewards
from ivgr.rollout.engine_timeout import with_patience
from ivgr.rollout.transformers_engine import RolloutEngine, TransformersEngine
from ivgr.trainer.base_module import PolicyModule
from ivgr.trainer.loss import PolicyLoss
from ivgr.trainer.nonfinite_guard import Guard
from ivgr.trainer.optimizer import Optimizer, Schedule
from ivgr.trainer.policy_update import Update
from ivgr.trainer.reference import FrozenReference, Reference
from ivgr.trainer.rl_step import Iteration


@checked("model.")
class IVGR(PolicyModule):
    """Dual-stream GRPO with a consistency reward and a rollout archive.

    Args:
        policy: HF directory, hub id or "tiny"; or a class with `load() -> (model, processor)`.
        adapter: Low-rank adapters to train instead of the weights; null trains the weights.
        freeze: Parts that are not trained: "vision" (with its merger), "embeddings" (with a tied head).
        gradient_checkpointing: Keeps only the layers' inputs for the backward pass: slower, smaller.
        reference: Where the frozen reference comes from.
        engine: Rollout engine: group size, temperature, top-p, response length.
        rewards: Reward terms and weights.
        judge: Decides what no rule can; needed where a reward term of any weight asks it (accuracy,
            single_accuracy, consistency). Without one an answer that no rule matches is wrong.
        validation_metrics: Figures of held-out responses beside those of `HeldOutFigures`.
        archive: Best grounded reasoning by query.
        loss: Clip bounds, KL estimator and weight.
        optimizer: Optimizer by timm name.
        schedule: Learning-rate schedule by timm name.
        prompts: Instructions of the two streams.
        iterations: RL iterations of the run.
        updates: Optimizer updates (mini-batches) an iteration and epoch.
        epochs: Passes over an iteration's rollouts.
        token_budget: Padded tokens a micro-batch; lower it when memory runs out.
        layout: "tree" shares each query's prefix in scoring and update; "rows" shares nothing,
            for comparison.
        resample: Rounds in which groups whose rewards are all equal are rolled out again.
        drop_flat: Leaves groups whose rewards stay equal out of the update, KL included.
        clip_norm: Largest gradient norm; null clips none.
        max_prompt_tokens: Longest prompt, images included.
        guard: When a run that goes wrong is stopped.
        record_every: Rollouts are written of every so many-th iteration, and of the last.
    """

    kind = "rl"
    state_shape = PolicyModule.state_shape | {"iteration": int, "archive": Archive.state_shape}
    length = "model.iterations"

    def __init__(
        self,
        policy: PolicySource | str = "tiny",
        adapter: Adapter | None = None,
        freeze: Sequence[Part] = (),
        gradient_checkpointing: bool = False,
        reference: FrozenReference = lazy_instance(FrozenReference),  # noqa: B008
        engine: RolloutEngine = lazy_instance(TransformersEngine),  # noqa: B008
        rewards: Rewards = lazy_instance(Rewards),  # noqa: B008
        judge: Judge | None = None,
        validation_metrics: Sequence[ValidationMetric] = (),
        archive: Archive = lazy_instance(Archive),  # noqa: B008
        loss: PolicyLoss = PolicyLoss(),  # noqa: B008
        optimizer: Optimizer = Optimizer(),  # noqa: B008
        schedule: Schedule = Schedule(),  # noqa: B008
        prompts: Prompts = Prompts(),  # noqa: B008
        iterations: PositiveInt = 360,
        updates: PositiveInt = 4,
        epochs: PositiveInt = 1,
        token_budget: PositiveInt = 32768,
        layout: Layout = "tree",
        resample: NonNegativeInt = 0,
        drop_flat: bool = False,
        clip_norm: PositiveFloat | None = 1.0,
        max_prompt_tokens: PositiveInt = 8192,
        guard: Guard = Guard(),  # noqa: B008
        record_every: PositiveInt = 1,
    ) -> None:
        judge = rewards.choose_judge(judge)
        super().__init__(
            source=policy,
            form=TrainingForm(adapter, tuple(freeze), gradient_checkpointing),
            prompts=prompts,
            max_prompt_tokens=max_prompt_tokens,
            optimizer=optimizer,
            schedule=schedule,
            clip_norm=clip_norm,
            guard=guard,
        )
        self.engine = with_patience(engine, guard.engine_timeout)
        self.reference_source, self.rewards = reference, rewards
        self.judge = patient_judge(judge, guard.judge_timeout)
        self.validation_metrics = validation_metrics
        self.archive, self.loss = archive, loss
        self.iterations, self.updates, self.epochs = iterations, updates, epochs
        self.total_updates = iterations * updates * epochs
        self.token_budget, self.layout = token_budget, layout
        self.resample, self.drop_flat = resample, drop_flat
        self.record_every = record_every
        self.iteration = 0
        self.halt: Callable[[], None] = lambda: None
        self.before: tuple[dict, dict] | None = None
        self.figures = HeldOutFigures(self.judge, self.validation_metrics)

    @property
    def validation_figures(self) -> list[str]:
        return tags_of(self.validation_metrics)

    def load_reference(self) -> Reference:
        return self.reference_source.load(self.policy)

    def on_fit_start(self) -> None:
        update = Update(
            policy=self.policy,
            reference=self.reference,
            loss=self.loss,
            stepper=self.create_stepper(),
            temperature=self.engine.temperature,
            updates=self.updates,
            epochs=self.epochs,
            token_budget=self.token_budget,
            layout=self.layout,
            guard=self.guard,
            level=self.level,
        )
        self.loop = Iteration(
            policy=self.policy,
            tokenizer=self.processor.tokenizer,
            engine=self.engine,
            rewards=self.rewards,
            judge=self.judge,
            archive=self.archive,
            update=update,
            resample=self.resample,
            drop_flat=self.drop_flat,
            rollout_policy=self.rollout_policy,
            halt=lambda: self.halt(),
        )

    def on_train_start(self) -> None:
        self.idle_since = time.perf_counter()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Counts what all ranks have rejected; UserError if it is too much."""
        self.metrics = {"time/data_wait": time.perf_counter() - self.idle_since}
        self.before = self.archive.state_dict(), self.trainer.datamodule.quarantine.state_dict()
        quarantine = self.trainer.datamodule.quarantine
        quarantine.add(gather_lists(batch.rejected), sum(gather(batch.seen)))
        self.metrics |= quarantine.metrics()

    def training_step(self, batch: Batch, _: int) -> None:
        """One iteration; without any query, only the data moves on."""
        seed, self.everyone = derive_seed(run_seed(), "rollout", self.iteration, 0), []
        if self.loop.update.stepper.sum_ranks(float(len(batch.queries))):
            self.metrics |= self.loop.run(batch.queries, seed)
            self.everyone = self.loop.everyone
        self.metrics["optim/lr"] = self.optimizers().param_groups[0]["lr"]
        self.iteration, self.before = self.iteration + 1, None
        if self.iteration >= self.iterations:
            self.trainer.should_stop = True

    def roll_back(self) -> None:
        """Forgets what an iteration that was given up before its update has found."""
        if self.before is not None:
            archive, quarantine = self.before
            self.archive.load_state_dict(archive)
            self.trainer.datamodule.quarantine.load_state_dict(quarantine)

    def on_train_batch_end(self, outputs, batch: Batch, batch_idx: int) -> None:
        self.idle_since = time.perf_counter()

    def validation_step(self, batch: Batch, _: int) -> None:
        if batch.queries:
            self.engine.answer(self.rollout_policy(), self.processor.tokenizer, batch.queries)
            self.figures.update(batch.queries)

    def on_validation_epoch_start(self) -> None:
        self.rollout_policy()
        self.figures = HeldOutFigures(self.judge, self.validation_metrics).to(self.device)

    def on_validation_epoch_end(self) -> None:
        """For checkpoint_best and `ivgr validate`; in training `BeforeAfter` writes them to
        TensorBoard, by iteration."""
        alone = self.trainer.state.fn == TrainerFn.VALIDATING
        for stream, figures in self.figures.compute().items():
            named = {f"val/{stream}/{name}": value for name, value in figures.items()}
            self.log_dict(named, logger=alone)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["ivgr"] |= {"iteration": self.iteration, "archive": self.archive.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        super().on_load_checkpoint(checkpoint)
        self.iteration = checkpoint["ivgr"]["iteration"]
        self.archive.load_state_dict(checkpoint["ivgr"]["archive"])
