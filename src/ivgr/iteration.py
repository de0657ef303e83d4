"""One iVGR iteration: roll out both streams → score → advantages → update.

While a judge reads, the model does the passes of the update that need no reward.

A plain class without Lightning, so that it can be read, tested and timed alone; the
module hands it the parts and the optimizer step.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ivgr.advantage import group_advantages
from ivgr.archive import Archive
from ivgr.errors import UserError
from ivgr.judge.background import in_background
from ivgr.judge.protocol import Judge
from ivgr.kernels import TokenStatistics, fused_linear_logprob_kl
from ivgr.loss import PolicyLoss, TokenLoss, policy_loss
from ivgr.query import Query
from ivgr.rewards.total import Open, Rewards, ask_once, enter_verdicts
from ivgr.rollout.engine import RolloutEngine
from ivgr.rollout.resample import resample_flat, without_flat
from ivgr.tree import Layout, Pack, pack_queries
from ivgr.watch.metrics import UpdateMetrics, batch_metrics, judge_metrics


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
    token_budget padded tokens a micro-batch, layout "rows" shares no prefix; groups whose
    rewards are all equal are rolled out again up to resample times, and those left leave
    the update with drop_flat.
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
    resample: int = 0
    drop_flat: bool = False
    seconds: Counter = field(default_factory=Counter)
    verdicts: list = field(default_factory=list)

    def run(self, queries: list[Query], seed: int) -> dict[str, float]:
        """Trains on `queries` once; returns the iteration's metrics by TensorBoard name.
        UserError, on all ranks alike and before any update, if the judge gives it up."""
        self.seconds, self.verdicts = Counter(rollout=0.0, reward=0.0, judge_wait=0.0, update=0.0), []
        with self._timed("rollout"):
            self._roll_out(queries, seed)
        settled = not (self.resample or self.drop_flat)  # else the update may be of other rollouts
        with self._timed("update"):
            mini_batches = self._mini_batches(queries) if settled else []
        with self._timed("reward"):
            self._score(queries, mini_batches)
        with self._timed("resample"), self.archive.held():
            resampled = resample_flat(
                queries, self.resample, seed, self._roll_out, self._score, self.stepper.sum_ranks
            )
        assign_advantages(queries)
        with self._timed("update"):
            kept = without_flat(queries) if self.drop_flat else queries
            statistics = self._optimise(mini_batches) if settled else self.update(kept)
        times = {f"time/{phase}": seconds for phase, seconds in self.seconds.items()}
        figures = batch_metrics(queries, self.archive, self.seconds["rollout"])
        return figures | judge_metrics(self.judge, self.verdicts) | resampled | statistics | times

    def _roll_out(self, queries: list[Query], seed: int) -> None:
        self.engine.roll_out(self.policy, self.tokenizer, queries, seed)

    def update(self, queries: list[Query]) -> dict[str, float]:
        """The update alone, on rolled-out queries with advantages; returns its metrics."""
        mini_batches = self._mini_batches(queries)
        self._infer_reference(mini_batches)
        self._infer_policy(mini_batches)
        return self._optimise(mini_batches)

    def _score(self, queries: list[Query], mini_batches: Sequence[list[Pack]] = ()) -> None:
        """Rewards: rules, the judge on answers, the archive, the judge on reasoning, sums; the
        passes over `mini_batches` beside it."""
        doubtful = self.rewards.apply_rules(queries)
        with self._asking(self.judge.agree, doubtful, "accuracy"):
            self._infer_reference(mini_batches)
        self.archive.admit(queries)
        pairs = self.rewards.pair_reasoning(queries, self.archive)
        with self._asking(self.judge.compare, pairs, "consistency"):
            self._infer_policy(mini_batches)
        self.rewards.add_up(queries)

    @contextmanager
    def _asking(self, ask: Callable[[list], list], questions: list[Open], term: str) -> Iterator[None]:
        """The judge reads in a background thread while the body runs in this one; then its
        verdicts become `term`. An error of one rank's judge stops all ranks."""
        asked = in_background(ask_once, ask, questions)
        yield
        with self._timed("judge_wait"):
            failed = asked.exception()
        if self.stepper.sum_ranks(float(failed is not None)):
            raise failed or UserError("judge: it gave another rank no verdicts")
        enter_verdicts(questions, asked.result(), term)
        self.verdicts += asked.result().values()

    def _mini_batches(self, queries: list[Query]) -> list[list[Pack]]:
        """Whole queries dealt out in turn: sizes differ by at most one query."""
        dealt = [queries[i :: self.updates] for i in range(self.updates)]
        return [pack_queries(self.policy, part, self.token_budget, self.layout) for part in dealt]

    @torch.no_grad()
    def _infer_reference(self, mini_batches: Sequence[list[Pack]]) -> None:
        """The reference's log-probs of every token (exact KL has its own pass)."""
        with self._timed("update"):
            for pack in (pack for packs in mini_batches for pack in packs):
                if self.loss.kl != "exact":
                    pack.ref_logp = self._statistics(self.reference, pack, kl=None).logp

    @torch.no_grad()
    def _infer_policy(self, mini_batches: Sequence[list[Pack]]) -> None:
        """With several updates, the policy's log-probs before the first (with one, they are
        the update's own, detached)."""
        with self._timed("update"):
            for pack in (pack for packs in mini_batches for pack in packs):
                if len(mini_batches) * self.epochs > 1:
                    pack.old_logp = self._statistics(self.policy, pack, kl=None).logp

    def _optimise(self, mini_batches: list[list[Pack]]) -> dict[str, float]:
        metrics = UpdateMetrics()
        for epoch in range(self.epochs):
            for packs in mini_batches:
                tokens = self.stepper.sum_ranks(sum(len(pack.targets) for pack in packs))
                if not tokens:
                    continue
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
        advantage = pack.advantage

        def token_loss(logp, ref_logp, kl, entropy, rows=slice(None)) -> TokenLoss:
            old = logp.detach() if pack.old_logp is None else pack.old_logp[rows]
            return policy_loss(logp, old, advantage[rows], kl, self.loss)

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
        """Each second counts for the innermost phase alone."""
        start, before = time.perf_counter(), self.seconds.total()
        yield
        if self.policy.device.type == "cuda":
            torch.cuda.synchronize()
        inner = self.seconds.total() - before
        self.seconds[phase] += time.perf_counter() - start - inner


def assign_advantages(queries: list[Query]) -> None:
    """Advantages within each group: one query, one stream."""
    for query in queries:
        for group in query.groups:
            rewards = [rollout.reward for rollout in group.rollouts]
            for rollout, advantage in zip(group.rollouts, group_advantages(rewards), strict=True):
                rollout.advantage = advantage
