"""The cold start: supervised training on reasoning of both streams; at the end an ordinary HF
directory is written."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from jsonargparse import lazy_instance

from ivgr.core.prompts import Prompts
from ivgr.core.query import Query
from ivgr.core.settings import PositiveFloat, PositiveInt, checked
from ivgr.distributed.fsdp import run_pass
from ivgr.evaluation.held_out import ValidationMetric
from ivgr.judge import Judge, RulesAlone
from ivgr.judge.judge_timeout import patient_judge
from ivgr.kernels import TokenStatistics, fused_linear_logprob_kl
from ivgr.models.lora import Adapter
from ivgr.models.model_directory import refuse_to_replace
from ivgr.models.pretrained import PolicySource
from ivgr.models.trainable import Part, TrainingForm
from ivgr.packing.prefix_tree import Pack, pack_queries, tree_length
from ivgr.rollout.transformers_engine import RolloutEngine, TransformersEngine
from ivgr.trainer.base_module import PolicyModule
from ivgr.trainer.micro_batches import run_within_memory
from ivgr.trainer.nonfinite_guard import Guard
from ivgr.trainer.optimizer import Optimizer, Schedule


@checked("model.")
class SFT(PolicyModule):
    """Imitates `<think>reasoning</think><answer>answer</answer>` token by token.

    Args:
        policy: HF directory, hub id or "tiny"; or a class with `load() -> (model, processor)`.
        adapter: Low-rank adapters to train instead of the weights, merged at the end.
        freeze: Parts that are not trained: "vision" (with its merger), "embeddings" (with a tied head).
        gradient_checkpointing: Keep layers' inputs only for the backward pass, which computes the rest again.
        optimizer: Optimizer by timm name.
        schedule: Learning-rate schedule by timm name, over `data.steps` steps.
        prompts: Instructions of the two streams.
        engine: Decodes the held-out queries at the end.
        judge: Decides there what no rule can; without one an answer that no rule matches is wrong.
        export: Folder under trainer.default_root_dir for the trained HF model.
        token_budget: Padded tokens a micro-batch.
        clip_norm: Largest gradient norm; null clips none.
        max_prompt_tokens: Longest prompt, images included.
        guard: When a run that goes wrong is stopped.
    """

    kind = "sft"
    length = "data.steps, data.epochs or data.lessons"

    def __init__(
        self,
        policy: PolicySource | str,
        adapter: Adapter | None = None,
        freeze: Sequence[Part] = (),
        gradient_checkpointing: bool = False,
        optimizer: Optimizer = Optimizer(lr=1e-3),  # noqa: B008
        schedule: Schedule = Schedule("cosine"),  # noqa: B008
        prompts: Prompts = Prompts(),  # noqa: B008
        engine: RolloutEngine = lazy_instance(TransformersEngine),  # noqa: B008
        judge: Judge | None = None,
        validation_metrics: Sequence[ValidationMetric] = (),
        export: str = "model",
        token_budget: PositiveInt = 4096,
        clip_norm: PositiveFloat | None = 1.0,
        max_prompt_tokens: PositiveInt = 8192,
        guard: Guard = Guard(),  # noqa: B008
    ) -> None:
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
        self.engine, self.export = engine, export
        self.judge = patient_judge(judge or RulesAlone(), guard.judge_timeout)
        self.validation_metrics = validation_metrics
        self.token_budget = token_budget

    @property
    def total_updates(self) -> int:
        return self.trainer.datamodule.total_steps

    iterations = total_updates

    def on_fit_start(self) -> None:
        refuse_to_replace(self.export_folder, "model.export", Path(self.trainer.default_root_dir))
        self.stepper = self.create_stepper()

    @property
    def export_folder(self) -> Path:
        """Where the trained model goes when the run is over."""
        return Path(self.trainer.default_root_dir) / self.export

    def training_step(self, queries: list[Query], _: int) -> torch.Tensor:
        """One update on the mean over all ranks' tokens."""
        packs = pack_queries(self.policy, sorted(queries, key=tree_length), self.token_budget)
        tokens = self.stepper.sum_ranks(sum(len(pack.targets) for pack in packs))
        packs = self.level(packs) if self.level else packs
        losses = run_within_memory(self, packs, partial(self._differentiate, tokens))
        norm = self.stepper.step()
        loss = torch.tensor(self.stepper.sum_ranks(sum(losses)))
        lr = self.optimizers().param_groups[0]["lr"]
        self.log_dict({"optim/loss": loss, "optim/lr": lr, "optim/grad_norm": norm})
        return loss

    def _differentiate(self, tokens: float, pack: Pack) -> float:
        """Adds the gradients of the pack's share of the mean loss over `tokens`; returns that share."""
        statistics = run_pass(self.policy, lambda: self._imitate(pack))
        self.guard.watch(statistics)
        loss = statistics.loss / tokens
        self.stepper.backward(loss)
        return loss.item()

    def _imitate(self, pack: Pack) -> TokenStatistics:
        return fused_linear_logprob_kl(
            pack.response_hidden(self.policy),
            self.policy.lm_head,
            None,
            None,
            pack.targets,
            kl=None,
            token_loss=lambda logp, *_: -logp,
        )

    def on_train_batch_end(self, outputs, batch, batch_idx: int) -> None:
        if (batch_idx + 1) % 100 == 0:
            print(f"step {batch_idx + 1}  loss {outputs['loss'].item():.3f}", flush=True)
