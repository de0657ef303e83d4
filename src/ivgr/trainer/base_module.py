"""The base LightningModule of reinforcement learning and the cold start. It owns a policy in its training
form, whole or sharded, and steps it itself (manual optimisation)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from transformers import PreTrainedModel, ProcessorMixin

from ivgr.core.atomic_files import folder_to_write
from ivgr.core.errors import UserError
from ivgr.core.lightning_private import has_trainer
from ivgr.core.metric import ValidationMetric
from ivgr.core.sharding import is_sharded
from ivgr.data.encode import EncodingConfig, QueryEncoder
from ivgr.distributed.collectives import agree
from ivgr.distributed.fsdp import Replica
from ivgr.models.lora import is_adapted, merge_adapters
from ivgr.models.model_directory import write_directory
from ivgr.models.pretrained import PolicySource, Pretrained, load_skeleton
from ivgr.models.stored_weights import StoredWeights
from ivgr.models.trainable import TrainableConfig
from ivgr.rollout.tensor_parallel_engine import TensorParallelEngine, with_tensor_parallel
from ivgr.rollout.transformers_engine import RolloutEngine
from ivgr.trainer.dummy_packs import DummyPackPadder, PadWithDummyPacks
from ivgr.trainer.export import POLICY, describe_policy
from ivgr.trainer.nonfinite_guard import GuardConfig, NonFiniteGuard
from ivgr.trainer.optimizer_step import LightningOptimizerStep
from ivgr.trainer.reference import Reference
from ivgr.trainer.resume import LAYOUT, admit, layout_of, moments_of
from ivgr.trainer.update_config import StepConfig


class PolicyModule(L.LightningModule):
    """Loads, shards, steps and saves a policy; a subclass defines what it is trained on.

    iterations and total_updates (for the schedule) count the whole run; length names the setting that gives
    them; kind is a key of `ivgr.trainer.resume.KINDS`; state_shape is the shape of the module's state in a
    checkpoint. The subclass documents the arguments.
    """

    iterations: int
    total_updates: int
    length: str
    kind: str
    engine: RolloutEngine
    state_shape = {"skipped": int, "policy": POLICY}
    # None until `configure_model`.
    policy: PreTrainedModel
    processor: ProcessorMixin
    encoder: QueryEncoder
    reference: Reference | None
    _replica: Replica | None
    _weights: StoredWeights | None

    def __init__(
        self,
        source: PolicySource | str,
        trainable: TrainableConfig,
        encoding: EncodingConfig,
        update: StepConfig,
        guard: GuardConfig,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.source = Pretrained(source) if isinstance(source, str) else source
        self.trainable = trainable
        self.encoding = encoding
        self.update = update
        self.guard = NonFiniteGuard(guard.patience)
        self.policy = self.processor = self.encoder = None
        self.reference = self._replica = self._weights = None
        self.metrics: dict[str, float] = {}
        self.check_preempted: Callable[[], None] = lambda: None

    def setup(self, stage: str) -> None:
        """Raises UserError if the data module belongs to the other kind of training."""
        data = self.trainer.datamodule
        if data is not None and hasattr(data, "total_steps") != (self.kind == "sft"):
            mend = {"sft": "ColdStart or Curriculum", "rl": "ShardDataModule or TinyWorld"}[self.kind]
            raise UserError(
                f"data is {type(data).__name__}, of which {type(self).__name__} cannot learn; take {mend}"
            )

    def configure_model(self) -> None:
        if self.policy is not None:
            return
        agree(self.make_parts)
        if has_trainer(self):
            self._place()
        agree(self.fill_weights)

    def make_parts(self) -> None:
        """Makes policy, encoder and reference; weights that are read from a directory stay there for now."""
        self.policy, self.processor, self._weights = load_skeleton(self.source)
        self.trainable.apply(self.policy.eval())
        self.encoder = QueryEncoder.of(
            self.policy.config,
            self.processor,
            self.encoding.prompts,
            self.encoding.max_prompt_tokens,
            self._compute_dtype(),
        )
        self.reference = self.load_reference()

    def fill_weights(self) -> None:
        """Reads onto this rank's device what of the weights it keeps."""
        device = self.trainer.strategy.root_device if has_trainer(self) else torch.device("cpu")
        if self._weights is not None:
            self._weights.fill(self.policy, device)
        if self.reference is not None:
            self.reference.fill(device)

    def validation_metrics(self) -> Sequence[ValidationMetric]:
        """Returns the data module's own validation metrics, in addition to those that every run has."""
        return getattr(self.trainer.datamodule, "validation_metrics", ())

    def load_reference(self) -> Reference | None:
        """Returns the frozen reference of `self.policy`, if there is one."""
        return None

    def _compute_dtype(self) -> torch.dtype:
        """Returns the dtype that all passes compute in, rollouts included."""
        sharded = has_trainer(self) and is_sharded(self.trainer.strategy)
        strategy: Any = self.trainer.strategy if sharded else None
        return getattr(strategy, "param_dtype", None) or self.policy.dtype

    def _place(self) -> None:
        """Shards policy and reference if the strategy does; UserError if Lightning is told to change
        dtypes."""
        precision = self.trainer.precision
        if precision not in ("32-true", None):
            raise UserError(
                f"trainer.precision is {precision}: leave it out; model.policy.dtype bfloat16 with "
                "model.update.optimizer.master, or fsdp2's param_dtype, compute in lower precision"
            )
        if is_sharded(self.trainer.strategy):
            strategy: Any = self.trainer.strategy
            replica: Replica = strategy.split(self.policy, self.reference)
            self._replica = replica
            self.engine = with_tensor_parallel(self.engine, replica.parts.tp_group)

    def roll_back(self) -> None:
        """Discards the results of an iteration that was abandoned before its update."""

    def rollout_policy(self) -> PreTrainedModel:
        """Returns the policy that rolls out; if weights are sharded, all ranks must call it."""
        return self._replica.sync() if self._replica else self.policy

    def join_answers(self) -> None:
        """Ends a series of answers, of which one rank may need more than another; all ranks must call it
        before they next wait for one another."""
        if isinstance(self.engine, TensorParallelEngine):
            self.engine.join(self.rollout_policy(), self.processor.tokenizer)

    @property
    def pad_with_dummy_packs(self) -> PadWithDummyPacks | None:
        """Adds dummy packs if weights are sharded; None otherwise."""
        return DummyPackPadder(self.policy, self.encoder) if self._replica else None

    def create_optimizer_step(self) -> LightningOptimizerStep:
        return LightningOptimizerStep(self, self.guard, self._replica)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = self.update.optimizer.create(self.policy)
        self.scheduler = self.update.schedule.create(optimizer, self.total_updates)
        return optimizer

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leaves the queries on the host; packing and decoding move what they need."""
        return batch

    def made(self) -> dict:
        """Returns how the policy was made (see `describe_policy`)."""
        return describe_policy(self.source, self.trainable, self.processor)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["ivgr"] = {
            "kind": self.kind,
            "policy": self.made(),
            "optimizer": asdict(self.update.optimizer),
            "skipped": self.guard.skipped,
        }
        for state in checkpoint.get("optimizer_states", []):
            if state:  # sharded state is written by each rank itself
                checkpoint[LAYOUT] = layout_of(moments_of(state["state"]).items())

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Raises UserError if this run cannot continue from the checkpoint. With sharded weights,
        `ivgr.trainer.FSDP2` has checked and loaded it already."""
        if not self._replica:
            admit(self, checkpoint, str(self.trainer.ckpt_path), sharded=False)
        self.guard.skipped = checkpoint["ivgr"]["skipped"]

    def save_policy(self, folder: Path) -> None:
        """Writes the policy as a HF directory, adapters merged, on rank 0; all ranks must call it, and none
        may train afterwards."""
        writes = self.trainer.is_global_zero
        policy = self._replica.gather_to_cpu(writes) if self._replica else self.policy
        if writes:
            if is_adapted(policy):
                merge_adapters(policy)
            with folder_to_write(folder) as part:
                write_directory(policy, self.processor, part)
