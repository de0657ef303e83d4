"""One iVGR iteration: roll out both streams → score → advantages → update.

While a judge reads, the model does the passes of the update that need no reward.

A plain class without Lightning, so that it can be read, tested and timed alone; the
module hands it the parts.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ivgr.core.background import in_background
from ivgr.core.errors import UserError, say
from ivgr.core.query import Query
from ivgr.distributed.collectives import gather, gather_queries
from ivgr.judge.protocol import Judge
from ivgr.packing.prefix_tree import Pack
from ivgr.rewards.accuracy import prepare
from ivgr.rewards.archive import Archive
from ivgr.rewards.rewards import Open, Rewards, ask_once, enter_verdicts
from ivgr.rollout.transformers_engine import RolloutEngine
from ivgr.rollout.zero_std import resample_flat, without_flat
from ivgr.trainer.advantage import group_advantages
from ivgr.trainer.metrics import batch_metrics, judge_metrics
from ivgr.trainer.policy_update import Update


@dataclass
class Iteration:
    """The phases and what they need.

    Groups whose rewards are all equal are rolled out again up to resample times, and those
    left leave the update with drop_flat. rollout_policy gives what rolls out, where that is not the
    policy itself. halt is called, on all ranks, before phases that may be
    given up, and raises to do so. While it runs, phase says what it is at. After `run`, everyone holds
    the queries of all ranks.
    """

    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    engine: RolloutEngine
    rewards: Rewards
    judge: Judge
    archive: Archive
    update: Update
    resample: int = 0
    drop_flat: bool = False
    rollout_policy: Callable[[], PreTrainedModel] | None = None
    halt: Callable[[], None] = lambda: None
    phase: str = ""
    seconds: Counter = field(default_factory=Counter)
    verdicts: list = field(default_factory=list)
    everyone: list[Query] = field(default_factory=list)

    def run(self, queries: list[Query], seed: int) -> dict[str, float]:
        """Trains on `queries` once; returns the iteration's metrics by TensorBoard name, which are
        those of all ranks together, but for the times.
        UserError, on all ranks alike and before any update, if the judge gives it up."""
        self.seconds, self.verdicts = Counter(rollout=0.0, reward=0.0, judge_wait=0.0, update=0.0), []
        settled = not (self.resample or self.drop_flat)
        prepare(query.sample for query in queries)
        with self._timed("rollout"):
            self._roll_out(queries, seed)
        self.halt()
        with self._timed("update"):
            mini_batches = self.update.pack(queries if settled else [])
        with self._timed("reward"):
            self._score(queries, mini_batches)
        with self._timed("resample"), self.archive.held():
            resampled = self._resample_flat(queries, seed)
        assign_advantages(queries)
        self.halt()
        with self._timed("update"):
            if not settled:
                mini_batches = self.update.pack(without_flat(queries) if self.drop_flat else queries)
            statistics = self.update.run(mini_batches)
        times = {f"time/{phase}": seconds for phase, seconds in self.seconds.items()}
        self.everyone = gather_queries(queries)
        figures = batch_metrics(self.everyone, self.archive, self.seconds["rollout"])
        return figures | judge_metrics(self.judge, self.verdicts) | resampled | statistics | times

    def _roll_out(self, queries: list[Query], seed: int) -> None:
        policy = self.rollout_policy() if self.rollout_policy else self.policy
        self.engine.roll_out(policy, self.tokenizer, queries, seed)

    def _score(self, queries: list[Query], mini_batches: Sequence[list[Pack]] = ()) -> None:
        """Rewards: rules, the judge on answers, the archive, the judge on reasoning, sums; the
        passes over `mini_batches` beside it."""
        doubtful = self.rewards.apply_rules(queries)
        with self._asking(self.judge.agree, doubtful, "accuracy"), self._timed("update"):
            self.update.infer_reference(mini_batches)
        self.archive.admit(queries)
        pairs = self.rewards.pair_reasoning(queries, self.archive)
        with self._asking(self.judge.compare, pairs, "consistency"), self._timed("update"):
            self.update.infer_policy(mini_batches)
        self.rewards.add_up(queries)

    def _resample_flat(self, queries: list[Query], seed: int) -> dict[str, float]:
        sum_ranks = self.update.stepper.sum_ranks
        return resample_flat(queries, self.resample, seed, self._roll_out, self._score, sum_ranks)

    @contextmanager
    def _asking(self, ask: Callable[[list], list], questions: list[Open], term: str) -> Iterator[None]:
        """The judge reads in a background thread while the body runs in this one; then its
        verdicts become `term`. An error of one rank's judge stops all ranks."""
        asked = in_background(ask_once, ask, questions)
        yield
        with self._timed("judge_wait"):
            failed = asked.exception()
        failures = gather(None if failed is None else say(failed))
        if any(failures):
            rank = next(rank for rank, failure in enumerate(failures) if failure)
            raise failed or UserError(f"the judge of rank {rank} gave no verdicts: {failures[rank]}")
        enter_verdicts(questions, asked.result(), term)
        self.verdicts += asked.result().values()

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        """Each second counts for the innermost phase alone."""
        start, before = time.perf_counter(), self.seconds.total()
        outer, self.phase = self.phase, phase
        yield
        self.phase = outer
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
