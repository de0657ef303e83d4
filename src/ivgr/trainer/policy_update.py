"""The update phase: log-probs of reference and policy, loss, gradients, optimizer steps.

In: rolled-out queries, with advantages by the time of `run`. Out: a better policy, and the
metrics of getting there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from ivgr.core.finite import is_finite
from ivgr.core.query import Query, global_indices
from ivgr.distributed.collectives import gather_lists
from ivgr.distributed.fsdp import clone_if_sharded, reshard_after, run_pass
from ivgr.kernels import TokenStatistics, fused_linear_logprob_kl
from ivgr.models.forward import not_finite
from ivgr.packing.prefix_tree import Pack
from ivgr.trainer.dummy_packs import PadWithDummyPacks
from ivgr.trainer.loss import TokenLoss, policy_loss
from ivgr.trainer.metrics import UpdateMetrics
from ivgr.trainer.micro_batches import MicroBatcher
from ivgr.trainer.nonfinite_guard import NonFiniteGuard
from ivgr.trainer.optimizer_step import OptimizerStep
from ivgr.trainer.reference import Reference
from ivgr.trainer.update_config import UpdateConfig


@dataclass
class PolicyUpdate:
    """The update: an iteration's rollouts become optimizer steps.

    All log-probs are taken at `temperature`. pad_with_dummy_packs adds dummy packs to a mini-batch if weights
    are sharded. micro_batcher begins with the config's token_budget and lowers its own when memory runs out.
    """

    policy: PreTrainedModel
    reference: Reference
    config: UpdateConfig
    stepper: OptimizerStep
    temperature: float
    guard: NonFiniteGuard = field(default_factory=NonFiniteGuard)
    pad_with_dummy_packs: PadWithDummyPacks | None = None

    def __post_init__(self) -> None:
        self.micro_batcher = MicroBatcher(self.policy, self.config.token_budget, self.pad_with_dummy_packs)

    def pack(self, queries: list[Query]) -> list[list[Pack]]:
        """Returns the mini-batches, each as packs. The queries of all ranks are assigned in turn, so that the
        sizes of mini-batches differ by at most one query."""
        places = global_indices(queries)
        turns = {place: turn for turn, place in enumerate(sorted(gather_lists(places)))}
        placed = list(zip(places, queries, strict=True))
        dealt = [
            [query for place, query in placed if turns[place] % self.config.mini_batches == i]
            for i in range(self.config.mini_batches)
        ]
        return [self.micro_batcher.pack(part, self.config.layout) for part in dealt]

    @torch.no_grad()
    def infer_reference(self, mini_batches: Sequence[list[Pack]]) -> None:
        """Fills in the reference's log-probs where they are missing (exact KL has its own pass)."""
        missing = any(pack.ref_logp is None for packs in mini_batches for pack in packs)
        if self.config.loss.kl == "exact" or not missing:
            return
        with self.reference.inference_model() as reference:
            self._infer(mini_batches, reference, "ref_logp")

    @torch.no_grad()
    def infer_policy(self, mini_batches: Sequence[list[Pack]]) -> None:
        """Fills in the policy's log-probs before the first of several updates, where they are missing (with
        one update, they are the policy's own, detached)."""
        if len(mini_batches) * self.config.epochs > 1:
            with reshard_after(self.policy) as policy:
                self._infer(mini_batches, policy, "old_logp")

    def _infer(self, mini_batches: Sequence[list[Pack]], model: PreTrainedModel, name: str) -> None:
        def infer(pack: Pack) -> None:
            if getattr(pack, name) is None:
                setattr(pack, name, run_pass(model, lambda: self._statistics(model, pack, kl=None).logp))

        for packs in mini_batches:
            self.micro_batcher.run(packs, infer)

    def _refuse_broken_reference(self, mini_batches: Sequence[list[Pack]]) -> None:
        """Raises UserError on all ranks if the reference's log-probs are not finite: the reference never
        changes, so that no later iteration would be better."""
        known = [pack.ref_logp for packs in mini_batches for pack in packs if pack.ref_logp is not None]
        if self.stepper.sum_ranks(float(bool(known) and not is_finite(torch.cat(known)))):
            raise not_finite("in scoring", "reference")

    def run(self, mini_batches: list[list[Pack]]) -> dict[str, float]:
        """Makes one optimizer step per mini-batch and epoch; returns their metrics."""
        self.infer_reference(mini_batches)
        self.infer_policy(mini_batches)
        self._refuse_broken_reference(mini_batches)
        metrics = UpdateMetrics()
        for epoch in range(self.config.epochs):
            for packs in mini_batches:
                tokens = self.stepper.sum_ranks(sum(len(pack.targets) for pack in packs))
                if not tokens:
                    continue
                found = self.micro_batcher.run(packs, partial(self._differentiate, tokens))
                for pack, (statistics, loss) in zip(packs, found, strict=True):
                    self.guard.watch(statistics)
                    old = statistics.logp if pack.old_logp is None else pack.old_logp
                    metrics.add(pack, statistics, loss, old if epoch == 0 else None)
                metrics.grad_norms.append(self.stepper.step())
        guards = {"skipped": self.guard.skipped, "token_budget": self.micro_batcher.token_budget}
        return metrics.compute() | {f"guard/{name}": float(value) for name, value in guards.items()}

    def _differentiate(self, tokens: float, pack: Pack) -> tuple[TokenStatistics, TokenLoss]:
        """Adds the gradients of the pack's share of the mean loss over `tokens`."""
        self.stepper.begin_pass()
        reference = self._reference_hidden(pack) if self.config.loss.kl == "exact" else {}
        statistics, loss = run_pass(self.policy, lambda: self._policy_statistics(pack, **reference))
        total = cast(torch.Tensor, statistics.loss)
        self.stepper.backward(total / tokens)
        return statistics._replace(loss=total.detach()), loss

    @torch.no_grad()
    def _reference_hidden(self, pack: Pack) -> dict[str, torch.Tensor]:
        """Returns the reference's ref_hidden (R, H) and its head's ref_weight (V, H), for exact KL."""
        with self.reference.inference_model() as reference:
            return run_pass(
                reference,
                lambda: {
                    "ref_hidden": pack.response_hidden(reference),
                    "ref_weight": clone_if_sharded(reference, reference.lm_head.weight),
                },
            )

    def _policy_statistics(self, pack: Pack, **reference: torch.Tensor) -> tuple[TokenStatistics, TokenLoss]:
        """Returns logp, kl and entropy (R,) with the summed loss, of which only the loss has gradients; and
        the loss per token, for the metrics."""
        advantage, rollout_logp = pack.advantage, pack.rollout_logp

        def token_loss(
            logp: torch.Tensor,
            ref_logp: torch.Tensor | None,
            kl: torch.Tensor | None,
            entropy: torch.Tensor | None,
            rows: slice = slice(None),
        ) -> TokenLoss:
            old = logp.detach() if pack.old_logp is None else pack.old_logp[rows]
            return policy_loss(
                logp, old, advantage[rows], cast(torch.Tensor, kl), self.config.loss, rollout_logp[rows]
            )

        statistics = self._statistics(
            self.policy,
            pack,
            kl=self.config.loss.kl,
            entropy=True,
            token_loss=lambda *chunk: token_loss(*chunk).loss,
            **reference,
        )
        return statistics, token_loss(*statistics[:4])

    def _statistics(
        self, model: PreTrainedModel, pack: Pack, kl: str | None, **options: Any
    ) -> TokenStatistics:
        """Returns the statistics of each response token. The logits of all three passes have one dtype, so
        that equal weights give equal bits."""
        return fused_linear_logprob_kl(
            pack.response_hidden(model),
            model.lm_head,
            pack.targets,
            ref_logp=pack.ref_logp,
            temperature=self.temperature,
            kl=kl,
            logits_dtype=torch.float32 if self.config.loss.kl == "exact" else None,
            **options,
        )
