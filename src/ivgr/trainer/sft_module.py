"""The cold start: supervised training on reasoning of both streams, which ends with an ordinary HF
directory."""

import logging
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from jsonargparse import lazy_instance

from ivgr.core.query import Query
from ivgr.core.settings import checked
from ivgr.data.encode import EncodingConfig
from ivgr.distributed.fsdp import run_pass
from ivgr.judge import Judge, RulesAlone
from ivgr.judge.judge_timeout import with_judge_timeout
from ivgr.kernels import TokenStatistics, fused_linear_logprob_kl
from ivgr.models.model_directory import refuse_to_replace
from ivgr.models.pretrained import PolicySource
from ivgr.models.trainable import TrainableConfig
from ivgr.packing.prefix_tree import Pack, tree_length
from ivgr.rollout.transformers_engine import RolloutEngine, TransformersEngine
from ivgr.trainer.base_module import PolicyModule
from ivgr.trainer.micro_batches import MicroBatcher
from ivgr.trainer.nonfinite_guard import GuardConfig
from ivgr.trainer.update_config import StepConfig

LOGGER = logging.getLogger("ivgr")


@checked("model.")
class SFT(PolicyModule):
    """Imitates `<think>reasoning</think><answer>answer</answer>` token by token.

    Args:
        policy: HF directory, hub id or "tiny"; or a class with `load() -> (model, processor)`.
        trainable: Which of its parameters are trained; adapters are merged at the end.
        encoding: Instructions of the streams, longest prompt.
        engine: Decodes the held-out queries at the end.
        judge: Decides there what no rule can; without one an answer that no rule matches is wrong.
        update: Micro-batches, optimizer, schedule over `data.steps` steps.
        export: Folder under trainer.default_root_dir for the trained HF model.
        guard: When a run that goes wrong is stopped.
    """

    kind = "sft"
    length = "data.steps, data.epochs or data.lessons"

    def __init__(
        self,
        policy: PolicySource | str,
        trainable: TrainableConfig = TrainableConfig(),
        encoding: EncodingConfig = EncodingConfig(),
        engine: RolloutEngine = lazy_instance(TransformersEngine),
        judge: Judge | None = None,
        update: StepConfig = StepConfig(),
        export: str = "model",
        guard: GuardConfig = GuardConfig(),
    ) -> None:
        super().__init__(policy, trainable, encoding, update, guard)
        self.engine = engine
        self.export = export
        self.judge = with_judge_timeout(judge or RulesAlone(), guard.judge_timeout)

    @property
    def total_updates(self) -> int:
        return self.trainer.datamodule.total_steps

    @property
    def iterations(self) -> int:
        """The number of updates; each step is one."""
        return self.total_updates

    def on_fit_start(self) -> None:
        refuse_to_replace(self.export_folder, "model.export", Path(self.trainer.default_root_dir))
        self.stepper = self.create_optimizer_step()
        self.micro_batcher = MicroBatcher(self.policy, self.update.token_budget, self.pad_with_dummy_packs)

    @property
    def export_folder(self) -> Path:
        """The folder that the trained model is written to at the end of the run."""
        return Path(self.trainer.default_root_dir) / self.export

    def training_step(self, queries: list[Query], _: int) -> torch.Tensor:
        """Makes one update on the mean loss over all ranks' tokens."""
        packs = self.micro_batcher.pack(sorted(queries, key=tree_length), "tree")
        tokens = self.stepper.sum_ranks(sum(len(pack.targets) for pack in packs))
        losses = self.micro_batcher.run(packs, partial(self._differentiate, tokens))
        norm = self.stepper.step()
        loss = torch.tensor(self.stepper.sum_ranks(float(sum(losses))))
        lr = self.optimizers().param_groups[0]["lr"]
        self.metrics = {"optim/loss": loss.item(), "optim/lr": lr, "optim/grad_norm": norm}
        return loss

    def _differentiate(self, tokens: float, pack: Pack) -> torch.Tensor:
        """Adds the gradients of the pack's share of the mean loss over `tokens`; returns that share, still
        on the device."""
        self.stepper.begin_pass()
        statistics = run_pass(self.policy, lambda: self._imitate(pack))
        self.guard.watch(statistics)
        loss = cast(torch.Tensor, statistics.loss) / tokens
        self.stepper.backward(loss)
        return loss.detach().double()

    def _imitate(self, pack: Pack) -> TokenStatistics:
        return fused_linear_logprob_kl(
            pack.response_hidden(self.policy),
            self.policy.lm_head,
            pack.targets,
            kl=None,
            token_loss=lambda logp, *_: -logp,
        )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % 100 == 0:
            LOGGER.info("step %d  loss %.3f", batch_idx + 1, outputs["loss"].item())
