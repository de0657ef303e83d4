"""The update phase: log-probs of reference and policy, loss, gradients, optimizer steps.

In: rolled-out queries, with advantages by the time of `run`. Out: a better policy, and the
metrics of getting there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from ivgr.distributed.level import Level
from ivgr.distributed.ranks import gather_lists
from ivgr.distributed.shard import let_go, run_pass
from ivgr.kernels import TokenStatistics, fused_linear_logprob_kl
from ivgr.loss import PolicyLoss, TokenLoss, policy_loss
from ivgr.query import Query, places_of
from ivgr.tree import Layout, Pack, pack_queries
from ivgr.watch.metrics import UpdateMetrics


@dataclass
class Stepper:
    """How gradients become an update, in the trainer's hands: `backward` of a loss, `step`
    of the optimizer (returns the gradient norm), `sum_ranks` of a number over all ranks."""

    backward: Callable[[torch.Tensor], None]
    step: Callable[[], float]
    sum_ranks: Callable[[float], float]


@dataclass
class Update:
    """How an iteration's rollouts become optimizer steps.

    temperature is that of all log-probs; updates mini-batches an epoch, epochs passes over
    the iteration's rollouts, token_budget padded tokens a micro-batch, layout "rows" shares
    no prefix, level fills up a mini-batch's packs where weights are split over ranks.
    """

    policy: PreTrainedModel
    reference: PreTrainedModel
    loss: PolicyLoss
    stepper: Stepper
    temperature: float
    updates: int
    epochs: int
    token_budget: int
    layout: Layout = "tree"
    level: Level | None = None

    def pack(self, queries: list[Query]) -> list[list[Pack]]:
        """The mini-batches, each in packs: the whole queries of all ranks dealt out in turn, so that
        sizes differ by at most one query."""
        places = places_of(queries)
        turns = {place: turn for turn, place in enumerate(sorted(gather_lists(places)))}
        placed = list(zip(places, queries, strict=True))
        dealt = [
            [query for place, query in placed if turns[place] % self.updates == i]
            for i in range(self.updates)
        ]
        packed = [pack_queries(self.policy, part, self.token_budget, self.layout) for part in dealt]
        return packed if self.level is None else list(map(self.level, packed))

    @torch.no_grad()
    def infer_reference(self, mini_batches: Sequence[list[Pack]]) -> None:
        """The reference's log-probs of every token that are not there yet (exact KL has its own
        pass)."""
        for pack in (pack for packs in mini_batches for pack in packs):
            if self.loss.kl != "exact" and pack.ref_logp is None:
                pack.ref_logp = self._logp(self.reference, pack)
        let_go(self.reference)

    @torch.no_grad()
    def infer_policy(self, mini_batches: Sequence[list[Pack]]) -> None:
        """With several updates, the policy's log-probs before the first, where they are not there
        yet (with one update, they are its own, detached)."""
        for pack in (pack for packs in mini_batches for pack in packs):
            if len(mini_batches) * self.epochs > 1 and pack.old_logp is None:
                pack.old_logp = self._logp(self.policy, pack)
        let_go(self.policy)

    def run(self, mini_batches: list[list[Pack]]) -> dict[str, float]:
        """The optimizer steps, a mini-batch each; returns their metrics."""
        self.infer_reference(mini_batches)
        self.infer_policy(mini_batches)
        metrics = UpdateMetrics()
        for epoch in range(self.epochs):
            for packs in mini_batches:
                tokens = self.stepper.sum_ranks(sum(len(pack.targets) for pack in packs))
                if not tokens:
                    continue
                for pack in packs:
                    statistics, loss = run_pass(self.policy, partial(self._policy_statistics, pack))
                    self.stepper.backward(statistics.loss / tokens)
                    old = statistics.logp if pack.old_logp is None else pack.old_logp
                    metrics.add(pack, statistics, loss, old if epoch == 0 else None)
                metrics.grad_norms.append(self.stepper.step())
        return metrics.compute()

    def _logp(self, model: PreTrainedModel, pack: Pack) -> torch.Tensor:
        return run_pass(model, lambda: self._statistics(model, pack, kl=None).logp)

    def _policy_statistics(self, pack: Pack) -> tuple[TokenStatistics, TokenLoss]:
        """logp, kl, entropy (R,) and the summed loss, with gradients in the latter alone; and
        each token's loss, for its figures."""
        advantage = pack.advantage

        def token_loss(logp, ref_logp, kl, entropy, rows=slice(None)) -> TokenLoss:
            old = logp.detach() if pack.old_logp is None else pack.old_logp[rows]
            return policy_loss(logp, old, advantage[rows], kl, self.loss)

        ref_hidden = None
        if self.loss.kl == "exact":
            with torch.no_grad():
                ref_hidden = run_pass(self.reference, lambda: pack.response_hidden(self.reference))
        statistics = self._statistics(
            self.policy,
            pack,
            kl=self.loss.kl,
            ref_hidden=ref_hidden,
            entropy=True,
            token_loss=lambda *chunk: token_loss(*chunk).loss,
        )
        return statistics, token_loss(*statistics[:4])

    def _statistics(
        self,
        model: PreTrainedModel,
        pack: Pack,
        kl: str | None,
        ref_hidden: torch.Tensor | None = None,
        **options,
    ) -> TokenStatistics:
        """Of each response token; the logits of all three passes are of one dtype, so that
        equal weights give equal bits."""
        return fused_linear_logprob_kl(
            pack.response_hidden(model),
            model.lm_head,
            ref_hidden,
            self.reference.lm_head,
            pack.targets,
            ref_logp=pack.ref_logp,
            temperature=self.temperature,
            kl=kl,
            logits_dtype=torch.float32 if self.loss.kl == "exact" else None,
            **options,
        )
