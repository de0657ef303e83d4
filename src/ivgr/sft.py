"""The cold start: supervised training on reasoning of both streams (automatic
optimisation, Lightning's own loop); at the end an ordinary HF directory is written."""

from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from jsonargparse import lazy_instance

from ivgr.data.encode import QueryEncoder
from ivgr.data.prompts import Prompts
from ivgr.judge import Judge, RuleJudge
from ivgr.kernels import fused_logprob_kl
from ivgr.optim import Optimizer, Schedule
from ivgr.policy.adapter import Adapter, is_adapted, merge_adapters
from ivgr.policy.form import Part, TrainingForm
from ivgr.policy.load import Pretrained
from ivgr.policy.scratch import TinyScratch
from ivgr.query import Query
from ivgr.rollout.engine import RolloutEngine, TransformersEngine
from ivgr.tree import Pack, pack_queries, tree_length
from ivgr.watch.before_after import evaluate, print_figures


class SFT(L.LightningModule):
    """Imitates `<think>reasoning</think><answer>answer</answer>` token by token.

    Args:
        policy: Where the weights come from: pretrained, or from scratch.
        adapter: Low-rank adapters to train instead of the weights, merged at the end.
        freeze: Parts that are not trained: "vision" (with its merger), "embeddings" (with a tied head).
        gradient_checkpointing: Keep layers' inputs only for the backward pass, which computes the rest again.
        optimizer: Optimizer by timm name.
        schedule: Learning-rate schedule by timm name, over `data.steps` steps.
        prompts: Instructions of the two streams.
        engine: Decodes the held-out queries at the end.
        judge: Scores them.
        export: Folder under trainer.default_root_dir for the trained HF model.
        token_budget: Padded tokens a micro-batch.
        max_prompt_tokens: Longest prompt, images included.
    """

    def __init__(
        self,
        policy: Pretrained | TinyScratch = lazy_instance(TinyScratch),  # noqa: B008
        adapter: Adapter | None = None,
        freeze: Sequence[Part] = (),
        gradient_checkpointing: bool = False,
        optimizer: Optimizer = Optimizer(lr=1e-3),  # noqa: B008
        schedule: Schedule = Schedule("cosine"),  # noqa: B008
        prompts: Prompts = Prompts(),  # noqa: B008
        engine: RolloutEngine = lazy_instance(TransformersEngine),  # noqa: B008
        judge: Judge = lazy_instance(RuleJudge),  # noqa: B008
        export: str = "model",
        token_budget: int = 4096,
        max_prompt_tokens: int = 8192,
    ) -> None:
        super().__init__()
        self.source, self.optimizer, self.schedule, self.prompts = policy, optimizer, schedule, prompts
        self.form = TrainingForm(adapter, tuple(freeze), gradient_checkpointing)
        self.engine, self.judge, self.export = engine, judge, export
        self.token_budget, self.max_prompt_tokens = token_budget, max_prompt_tokens
        self.policy = None

    def configure_model(self) -> None:
        if self.policy is not None:
            return
        self.policy, self.processor = self.source.load()
        self.form.shape(self.policy.eval())
        self.encoder = QueryEncoder(
            self.processor, self.policy.config.model_type, self.prompts, self.max_prompt_tokens
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = self.optimizer.create(self.policy)
        self.scheduler = self.schedule.create(optimizer, self.trainer.datamodule.total_steps)
        return optimizer

    def training_step(self, queries: list[Query], _: int) -> torch.Tensor:
        self.scheduler.step(self.global_step)
        by_length = sorted(queries, key=tree_length)
        packs = pack_queries(self.policy, by_length, self.token_budget)
        logps = [self._logp(pack) for pack in packs]
        loss = -torch.cat(logps).mean()
        self.log_dict({"optim/loss": loss, "optim/lr": self.scheduler.optimizer.param_groups[0]["lr"]})
        return loss

    def _logp(self, pack: Pack) -> torch.Tensor:
        logits = self.policy.lm_head(pack.response_hidden(self.policy))
        return fused_logprob_kl(logits, pack.targets).logp

    def on_train_batch_end(self, outputs, batch, batch_idx: int) -> None:
        if (batch_idx + 1) % 100 == 0:
            print(f"step {batch_idx + 1}  loss {outputs['loss'].item():.3f}", flush=True)

    def on_train_end(self) -> None:
        print_figures(evaluate(self.trainer, self))
        if is_adapted(self.policy):
            merge_adapters(self.policy)
        folder = Path(self.trainer.default_root_dir) / self.export
        self.policy.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        print(f"the model is in {folder}")

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        """Queries stay on the host; packing moves what it needs."""
        return batch
