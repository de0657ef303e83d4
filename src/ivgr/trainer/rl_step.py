"""One iVGR iteration: roll out both streams → score → advantages → update.

While the judge works, the model runs those passes of the update that need no reward.

`RLStep` does not depend on Lightning, so that it can be read, tested and timed alone; the
LightningModule hands it its parts.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ivgr.core.query import Query
from ivgr.distributed.collectives import gather_queries
from ivgr.packing.prefix_tree import Pack
from ivgr.rewards.accuracy import prepare
from ivgr.rewards.scorer import Scorer
from ivgr.rollout.transformers_engine import RolloutEngine
from ivgr.rollout.zero_std import resample_zero_std, without_zero_std
from ivgr.trainer.advantage import group_advantages
from ivgr.trainer.metrics import batch_metrics, judge_metrics
from ivgr.trainer.policy_update import PolicyUpdate


@dataclass
class RLStep:
    """The phases of an iteration and the parts that they need.

    Groups whose rewards are all equal are rolled out again up to `resample` times; with drop_zero_std, those
    that stay equal are left out of the update. rollout_policy returns the model that rolls out, if it is not
    the policy itself. check_preempted is called on all ranks before each phase that may be abandoned, and
    raises to abandon it. `phase` names the phase that is running. After `run`, `everyone` holds the queries
    of all ranks.
    """

    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    engine: RolloutEngine
    scorer: Scorer
    update: PolicyUpdate
    resample: int = 0
    drop_zero_std: bool = False
    rollout_policy: Callable[[], PreTrainedModel] | None = None
    check_preempted: Callable[[], None] = lambda: None
    phase: str = ""
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    verdicts: list = field(default_factory=list)
    everyone: list[Query] = field(default_factory=list)

    def run(self, queries: list[Query], seed: int) -> dict[str, float]:
        """Trains on `queries` once and returns the iteration's metrics by name: over all ranks, except the
        times, which are this rank's. Raises UserError on all ranks, before any update, if the judge
        gives up."""
        self.seconds = defaultdict(float, rollout=0.0, reward=0.0, judge_wait=0.0, update=0.0)
        self.verdicts = []
        settled = not (self.resample or self.drop_zero_std)
        prepare(query.sample for query in queries)
        with self._timed("rollout"):
            self._roll_out(queries, seed)
        self.check_preempted()
        with self._timed("update"):
            mini_batches = self.update.pack(queries if settled else [])
        with self._timed("reward"):
            self._score(queries, mini_batches)
        with self._timed("resample"), self.scorer.rewards.archive.accumulate():
            resampled = self._resample_flat(queries, seed)
        assign_advantages(queries)
        self.check_preempted()
        with self._timed("update"):
            if not settled:
                mini_batches = self.update.pack(without_zero_std(queries) if self.drop_zero_std else queries)
            statistics = self.update.run(mini_batches)
        times = {f"time/{phase}": seconds for phase, seconds in self.seconds.items()}
        self.everyone = gather_queries(queries)
        figures = batch_metrics(self.everyone, self.scorer.rewards.archive, self.seconds["rollout"])
        return figures | judge_metrics(self.scorer.judge, self.verdicts) | resampled | statistics | times

    def _roll_out(self, queries: list[Query], seed: int) -> None:
        policy = self.rollout_policy() if self.rollout_policy else self.policy
        self.engine.roll_out(policy, self.tokenizer, queries, seed)

    def _score(self, queries: list[Query], mini_batches: Sequence[list[Pack]] = ()) -> None:
        """Computes the rewards; while the judge works, runs the passes over `mini_batches`."""
        infer_reference = self._during("update", self.update.infer_reference, mini_batches)
        infer_policy = self._during("update", self.update.infer_policy, mini_batches)
        self.verdicts += self.scorer.score(
            queries, infer_reference, infer_policy, partial(self._timed, "judge_wait")
        )

    def _resample_flat(self, queries: list[Query], seed: int) -> dict[str, float]:
        sum_ranks = self.update.stepper.sum_ranks
        return resample_zero_std(queries, self.resample, seed, self._roll_out, self._score, sum_ranks)

    def _during(self, phase: str, work: Callable, *arguments) -> Callable[[], None]:
        def timed_work() -> None:
            with self._timed(phase):
                work(*arguments)

        return timed_work

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        """Adds the time of the block to `phase`; time in an inner phase counts for that one only."""
        start, before = time.perf_counter(), sum(self.seconds.values())
        outer, self.phase = self.phase, phase
        yield
        self.phase = outer
        if self.policy.device.type == "cuda":
            torch.cuda.synchronize()
        inner = sum(self.seconds.values()) - before
        self.seconds[phase] += time.perf_counter() - start - inner


def assign_advantages(queries: list[Query]) -> None:
    """Sets the advantages within each group (one query, one stream)."""
    for query in queries:
        for group in query.groups:
            rewards = [rollout.reward for rollout in group.rollouts]
            for rollout, advantage in zip(group.rollouts, group_advantages(rewards), strict=True):
                rollout.advantage = advantage
