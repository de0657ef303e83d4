"""The weighted reward of every rollout, stream by stream.

grounded: R_format + R_acc + R_box; textual: R_format + R_acc + R_cons; single: R_format + 1.5·R_acc (weights
are settings), and a user's own terms. In: rolled-out queries. Out: the terms of their rollouts, the questions
for the judge, the weighted sum. `ivgr.rewards.scorer` calls the steps in order.
"""

from dataclasses import dataclass
from functools import partial

from jsonargparse import lazy_instance

from ivgr.core.errors import UserError
from ivgr.core.prompts import GROUNDED, PAIRED, SINGLE, STREAMS, TEXTUAL
from ivgr.core.query import Query
from ivgr.core.settings import NonNegativeFloat, checked
from ivgr.judge.protocol import Agreement, Comparison, Judge, RulesAlone
from ivgr.rewards.accuracy import rate_accuracy
from ivgr.rewards.archive import Archive
from ivgr.rewards.box_terms import rate_boxes, rate_validity
from ivgr.rewards.consistency import ask_consistency
from ivgr.rewards.format_term import rate_format, rate_plain_format
from ivgr.rewards.term import FunctionTerm, PendingVerdict, RewardTerm


@checked("model.rewards term: ")
@dataclass(frozen=True, kw_only=True)
class TermConfig:
    """The settings of a term."""

    weight: NonNegativeFloat = 1.0
    """The term's factor in the sum; 0 switches it off (it is still logged)."""


class Rewards:
    """The reward terms and their weights.

    Args:
        format: R_format, all streams.
        accuracy: R_acc, grounded and textual stream.
        single_accuracy: R_acc of single queries.
        box: R_box, grounded stream.
        validity: R_valid, grounded stream (part of the paper's released code, not of the paper).
        consistency: R_cons, textual stream.
        archive: Best grounded reasoning by query, which R_cons refers to.
        more: Terms of your own by name, each a class as `ivgr.rewards.term.RewardTerm`.
    """

    def __init__(
        self,
        format: TermConfig = TermConfig(),
        accuracy: TermConfig = TermConfig(),
        single_accuracy: TermConfig = TermConfig(weight=1.5),
        box: TermConfig = TermConfig(),
        validity: TermConfig = TermConfig(weight=0.0),
        consistency: TermConfig = TermConfig(),
        archive: Archive = lazy_instance(Archive),
        more: dict[str, RewardTerm] | None = None,
    ) -> None:
        self.archive = archive
        self.more = more or {}
        compare = partial(ask_consistency, archive=archive)
        own: list[tuple[str, FunctionTerm]] = [
            ("format", FunctionTerm((GROUNDED,), format.weight, rate_format)),
            ("format", FunctionTerm((TEXTUAL, SINGLE), format.weight, rate_plain_format)),
            ("accuracy", FunctionTerm(PAIRED, accuracy.weight, rate_accuracy)),
            ("accuracy", FunctionTerm((SINGLE,), single_accuracy.weight, rate_accuracy)),
            ("box", FunctionTerm((GROUNDED,), box.weight, rate_boxes)),
            ("validity", FunctionTerm((GROUNDED,), validity.weight, rate_validity)),
            ("consistency", FunctionTerm((TEXTUAL,), consistency.weight, compare, after_archive=True)),
        ]
        if taken := {name for name, _ in own} & self.more.keys():
            raise UserError(f"model.rewards.more: {min(taken)} is the name of a term already; give another")
        self.terms = [*own, *self.more.items()]
        self.weights = {
            stream: {name: term.weight for name, term in self.terms if stream in term.streams}
            for stream in STREAMS
        }
        asking = {"accuracy": accuracy, "single_accuracy": single_accuracy, "consistency": consistency}
        self.asking = [name for name, term in asking.items() if term.weight]

    def choose_judge(self, judge: Judge | None) -> Judge:
        """Returns `judge`, or the rules alone if no term needs a judge; UserError if none is named although a
        term with a weight above 0 asks it."""
        if judge is None and self.asking:
            terms = ", ".join(f"model.rewards.{name}" for name in self.asking)
            raise UserError(
                f"model.judge: none is named, and {terms} ask one; name a class_path (ivgr.LLMJudge, "
                "ivgr.LocalJudge; for the tiny world ivgr.toy.RuleJudge), or set their weight to 0"
            )
        return judge or RulesAlone()

    def rate(self, queries: list[Query]) -> list[PendingVerdict]:
        """Computes the terms of every rollout, except those that refer to the archive; returns the questions
        that the judge decides."""
        for query in queries:
            for group in query.groups:
                for rollout in group.rollouts:
                    rollout.terms = {}
        return self._apply(queries, after_archive=False)

    def rate_after_archive(self, queries: list[Query]) -> list[PendingVerdict]:
        """Computes the terms that refer to the archive; returns the questions that the judge decides."""
        return self._apply(queries, after_archive=True)

    def _apply(self, queries: list[Query], after_archive: bool) -> list[PendingVerdict]:
        pending = []
        for query in queries:
            for group in query.groups:
                terms = self._terms_of(group.stream, after_archive)
                for rollout in group.rollouts:
                    for name, term in terms:
                        value = term(rollout, query)
                        if isinstance(value, Agreement | Comparison):
                            pending.append(PendingVerdict(rollout, name, value))
                        else:
                            rollout.terms[name] = value
        return pending

    def _terms_of(self, stream: str, after_archive: bool) -> list[tuple[str, RewardTerm]]:
        return [
            (name, term)
            for name, term in self.terms
            if stream in term.streams and getattr(term, "after_archive", False) == after_archive
        ]

    def sum_rewards(self, queries: list[Query]) -> None:
        """Sets each rollout's reward to the weighted sum of its terms; None if a term with a weight is
        missing."""
        for query in queries:
            for group in query.groups:
                weights = {name: weight for name, weight in self.weights[group.stream].items() if weight}
                for rollout in group.rollouts:
                    complete = weights.keys() <= rollout.terms.keys()
                    rollout.reward = (
                        sum(weight * rollout.terms[name] for name, weight in weights.items())
                        if complete
                        else None
                    )
