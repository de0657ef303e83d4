"""One iVGR iteration: roll out both streams → score → advantages → update.

A plain class without Lightning, so that it can be read, tested and timed alone; the
module hands it the parts and the optimizer step.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ivgr.advantage import group_advantages
from ivgr.archive import Archive
from ivgr.judge.protocol import Judge
from ivgr.kernels import TokenStatistics, fused_linear_logprob_kl
from ivgr.loss import PolicyLoss, TokenLoss, policy_loss
from ivgr.query import Query
from ivgr.rewards.total import Rewards
from ivgr.rollout.engine import RolloutEngine
from ivgr.tree import Layout, Pack, pack_queries
from ivgr.watch.metrics import UpdateMetrics, batch_metrics


@dataclass
class Stepper:
    """How gradients become an update, in the trainer's hands: `backward` of a loss, `step`
    of the optimizer (returns the gradient norm), `sum_ranks` of a number over all ranks."""

    backward: Callable[[torch.Tensor], None]
    step: Callable[[], float]
    sum_ranks: Callable[[float], float]


@dataclass
class Iteration:
    """The phases and what they need.

    updates mini-batches an epoch, epochs passes over the iteration's rollouts,
    token_budget padded tokens a micro-batch, layout "rows" shares no prefix.
    """

    policy: PreTrainedModel
    reference: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    engine: RolloutEngine
    rewards: Rewards
    judge: Judge
    archive: Archive
    loss: PolicyLoss
    stepper: Stepper
    updates: int
    epochs: int
    token_budget: int
    layout: Layout = "tree"
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, queries: list[Query], seed: int) -> dict[str, float]:
        """Trains on `queries` once; returns the iteration's metrics by TensorBoard name."""
        with self._timed("rollout"):
            self.engine.roll_out(self.policy, self.tokenizer, queries, seed)
        with self._timed("reward"):
            self.rewards.score(queries, self.judge, self.archive)
            assign_advantages(queries)
        with self._timed("update"):
            statistics = self.update(queries)
        times = {f"time/{phase}": seconds for phase, seconds in self.seconds.items()}
        return batch_metrics(queries, self.archive, self.seconds["rollout"]) | statistics | times

    def update(self, queries: list[Query]) -> dict[str, float]:
        """Optimizer updates on rolled-out queries with advantages; returns their metrics."""
        mini_batches = self._mini_batches(queries)
        self._score(mini_batches)
        return self._optimise(mini_batches)

    def _mini_batches(self, queries: list[Query]) -> list[list[Pack]]:
        """Whole queries dealt out in turn: sizes differ by at most one query."""
        dealt = [queries[i :: self.updates] for i in range(self.updates)]
        return [pack_queries(self.policy, part, self.token_budget, self.layout) for part in dealt if part]

    @torch.no_grad()
    def _score(self, mini_batches: list[list[Pack]]) -> None:
        """Reference log-probs of every token; with several updates also the policy's before
        the first (with one, they are the update's own, detached)."""
        for pack in (pack for packs in mini_batches for pack in packs):
            if self.loss.kl != "exact":
                pack.ref_logp = self._statistics(self.reference, pack, kl=None).logp
            if len(mini_batches) * self.epochs > 1:
                pack.old_logp = self._statistics(self.policy, pack, kl=None).logp

    def _optimise(self, mini_batches: list[list[Pack]]) -> dict[str, float]:
        metrics = UpdateMetrics()
        for epoch in range(self.epochs):
            for packs in mini_batches:
                tokens = self.stepper.sum_ranks(sum(len(pack.targets) for pack in packs))
                for pack in packs:
                    statistics, loss = self._policy_statistics(pack)
                    self.stepper.backward(statistics.loss / tokens)
                    old = statistics.logp if pack.old_logp is None else pack.old_logp
                    metrics.add(pack, statistics, loss, old if epoch == 0 else None)
                metrics.grad_norms.append(self.stepper.step())
        return metrics.compute()

    def _policy_statistics(self, pack: Pack) -> tuple[TokenStatistics, TokenLoss]:
        """logp, kl, entropy (R,) and the summed loss, with gradients in the latter alone; and
        each token's loss, for its figures."""
        advantage, rollout_logp = pack.advantage, pack.rollout_logp

        def token_loss(logp, ref_logp, kl, entropy, rows=slice(None)) -> TokenLoss:
            old = logp.detach() if pack.old_logp is None else pack.old_logp[rows]
            return policy_loss(logp, old, advantage[rows], kl, self.loss, rollout_logp[rows])

        ref_hidden = None
        if self.loss.kl == "exact":
            with torch.no_grad():
                ref_hidden = pack.response_hidden(self.reference)
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
            temperature=self.engine.temperature,
            kl=kl,
            logits_dtype=torch.float32 if self.loss.kl == "exact" else None,
            **options,
        )

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.policy.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[phase] = time.perf_counter() - start


def assign_advantages(queries: list[Query]) -> None:
    """Advantages within each group: one query, one stream."""
    for query in queries:
        for group in query.groups:
            rewards = [rollout.reward for rollout in group.rollouts]
            for rollout, advantage in zip(group.rollouts, group_advantages(rewards), strict=True):
                rollout.advantage = advantage
