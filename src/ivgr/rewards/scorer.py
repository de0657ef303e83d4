"""Scores rolled-out queries: rules, the judge on answers, the archive, the judge on reasoning, sums.

The one place where this order stands. While the judge reads, the caller may do something else.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from ivgr.core.background import in_background
from ivgr.core.errors import UserError, say
from ivgr.core.query import Query
from ivgr.distributed.collectives import gather
from ivgr.judge.protocol import Agreement, Comparison, Judge, take_verdicts
from ivgr.rewards.rewards import Rewards
from ivgr.rewards.term import PendingVerdict, Question


def do_nothing() -> None:
    pass


@dataclass
class Scorer:
    """Scores queries by `rewards` and `judge`."""

    rewards: Rewards
    judge: Judge

    def score(
        self,
        queries: list[Query],
        during_answers: Callable[[], None] = do_nothing,
        during_reasoning: Callable[[], None] = do_nothing,
        waiting: Callable[[], AbstractContextManager] = nullcontext,
    ) -> list[float | bool | None]:
        """Fills every rollout's terms, reference and reward; the archive takes in what qualifies. All
        ranks must call it.

        Args:
            queries: This rank's.
            during_answers: Called while the judge reads answers.
            during_reasoning: Called while it reads reasoning.
            waiting: Entered while nothing is left to do but to wait for it.

        Returns:
            The judge's verdicts, None where there was none.

        Raises:
            UserError: A rank's judge gave no verdicts; on all ranks alike.
        """
        pending = self.rewards.rate(queries)
        answers = [one for one in pending if isinstance(one.question, Agreement)]
        verdicts = self._ask(self.judge.agree, answers, during_answers, waiting)
        self.rewards.archive.admit(queries)
        reasoning = [one for one in pending if isinstance(one.question, Comparison)]
        reasoning += self.rewards.rate_after_archive(queries)
        verdicts += self._ask(self.judge.compare, reasoning, during_reasoning, waiting)
        self.rewards.sum_rewards(queries)
        return verdicts

    def score_answers(self, queries: list[Query]) -> None:
        """The terms before the archive alone, for who wants no more; of this rank alone."""
        pending = self.rewards.rate(queries)
        answers = [one for one in pending if isinstance(one.question, Agreement)]
        apply_verdicts(answers, judge_unique(self.judge.agree, [one.question for one in answers]))

    def _ask(
        self,
        ask: Callable[[list], list],
        pending: list[PendingVerdict],
        meanwhile: Callable[[], None],
        waiting: Callable[[], AbstractContextManager],
    ) -> list:
        """The judge reads in a background thread while `meanwhile` runs in this one. An error of one rank's
        judge stops all ranks."""
        asked = in_background(judge_unique, ask, [one.question for one in pending])
        meanwhile()
        with waiting():
            failed = asked.exception()
        failures = gather(None if failed is None else say(failed))
        if any(failures):
            rank = next(rank for rank, failure in enumerate(failures) if failure)
            raise failed or UserError(f"the judge of rank {rank} gave no verdicts: {failures[rank]}")
        apply_verdicts(pending, asked.result())
        return list(asked.result().values())


def judge_unique(
    ask: Callable[[list], list], questions: Sequence[Question]
) -> dict[Question, float | bool | None]:
    """The judge's verdict on each question; identical ones are asked once. None where there is
    none, or what came is none (see `take_verdicts`)."""
    unique = list(dict.fromkeys(questions))
    return dict(zip(unique, take_verdicts(unique, ask(unique)), strict=True))


def apply_verdicts(pending: list[PendingVerdict], verdicts: dict) -> None:
    """Fills the terms that waited; a missing verdict leaves its term out."""
    for rollout, term, question in pending:
        verdict = verdicts[question]
        if verdict is None:
            rollout.terms.pop(term, None)
        else:
            rollout.terms[term] = float(verdict)
