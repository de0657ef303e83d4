"""The weighted reward of every rollout, stream by stream.

grounded: R_format + R_acc + R_box; textual: R_format + R_acc + R_cons; single: R_format +
1.5·R_acc (weights are settings). A box in a textual or single response breaks its format.
In: rolled-out queries. Rules come first, then the judge's verdicts on answers, then the
archive, then the verdicts on reasoning, then the sum; `ivgr.trainer.rl_step` runs them in this order.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ivgr.core.errors import UserError
from ivgr.core.prompts import GROUNDED, SINGLE, TEXTUAL
from ivgr.core.query import Query, Rollout
from ivgr.core.response import format_reward, read_think
from ivgr.core.settings import NonNegativeFloat, checked
from ivgr.judge.protocol import Agreement, Comparison, Judge, RulesAlone, take_verdicts
from ivgr.rewards.accuracy import read_accuracy
from ivgr.rewards.archive import Archive
from ivgr.rewards.box_terms import box_reward, box_validity

# A rollout and the question whose verdict one of its terms waits for.
Open = tuple[Rollout, Agreement | Comparison]


@checked("model.rewards term: ")
@dataclass
class Term:
    """weight: factor of the term in the sum; 0 switches it off (it is still logged)."""

    weight: NonNegativeFloat = 1.0


class Rewards:
    """The reward terms and their weights.

    Args:
        format: R_format, all streams.
        accuracy: R_acc, grounded and textual stream.
        single_accuracy: R_acc of single queries.
        box: R_box, grounded stream.
        validity: R_valid, grounded stream (part of the paper's released code, not of the paper).
        consistency: R_cons, textual stream.
    """

    def __init__(
        self,
        format: Term = Term(1.0),  # noqa: B008
        accuracy: Term = Term(1.0),  # noqa: B008
        single_accuracy: Term = Term(1.5),  # noqa: B008
        box: Term = Term(1.0),  # noqa: B008
        validity: Term = Term(0.0),  # noqa: B008
        consistency: Term = Term(1.0),  # noqa: B008
    ) -> None:
        common = {"format": format.weight, "accuracy": accuracy.weight}
        self.weights = {
            GROUNDED: {**common, "box": box.weight, "validity": validity.weight},
            TEXTUAL: {**common, "consistency": consistency.weight},
            SINGLE: {"format": format.weight, "accuracy": single_accuracy.weight},
        }
        asking = {"accuracy": accuracy, "single_accuracy": single_accuracy, "consistency": consistency}
        self.asking = [name for name, term in asking.items() if term.weight]

    def choose_judge(self, judge: Judge | None) -> Judge:
        """`judge`, or the rules alone where none is needed; UserError if none is named and a term that
        counts asks one."""
        if judge is None and self.asking:
            terms = ", ".join(f"model.rewards.{name}" for name in self.asking)
            raise UserError(
                f"model.judge: none is named, and {terms} ask one; name a class_path (ivgr.LLMJudge, "
                "ivgr.LocalJudge; for the tiny world ivgr.toy.RuleJudge), or set their weight to 0"
            )
        return judge or RulesAlone()

    def apply_rules(self, queries: list[Query]) -> list[Open]:
        """Fills every term that needs no judge; returns the answers that no rule matched."""
        return [
            (rollout, accuracy)
            for query in queries
            for group in query.groups
            for rollout in group.rollouts
            if isinstance(accuracy := _score_alone(rollout, query, group.stream), Agreement)
        ]

    def pair_reasoning(self, queries: list[Query], archive: Archive) -> list[Open]:
        """The textual rollouts with what their reasoning is to be compared with; R_cons is 0
        where there is no reference."""
        pairs = []
        for query in queries:
            reference = archive.reference(query)
            group = query.group(TEXTUAL)
            for rollout in group.rollouts if group else ():
                rollout.reference = reference
                if reference is None:
                    rollout.terms["consistency"] = 0.0
                else:
                    think = read_think(rollout.text)
                    pairs.append((rollout, Comparison(query.sample, reference, think, query.frame)))
        return pairs

    def add_up(self, queries: list[Query]) -> None:
        """The weighted sum of each rollout's terms, None if one that counts is missing."""
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


def ask_once(ask: Callable[[list], list], questions: list[Open]) -> dict:
    """The judge's verdict on each question; identical ones are asked once. None where there is
    none, or what came is none (see `take_verdicts`)."""
    unique = list(dict.fromkeys(question for _, question in questions))
    return dict(zip(unique, take_verdicts(unique, ask(unique)), strict=True))


def enter_verdicts(questions: list[Open], verdicts: dict, term: str) -> None:
    """Fills `term`; a missing verdict leaves it out."""
    for rollout, question in questions:
        verdict = verdicts[question]
        if verdict is None:
            rollout.terms.pop(term, None)
        else:
            rollout.terms[term] = float(verdict)


def _score_alone(rollout: Rollout, query: Query, stream: str) -> float | Agreement:
    """The terms of the rollout alone; returns R_acc or the question that decides it."""
    boxes_allowed = stream == GROUNDED or "<box>" not in rollout.text
    rollout.terms = {"format": format_reward(rollout.text) * boxes_allowed}
    accuracy = read_accuracy(query.sample, rollout.text)
    if isinstance(accuracy, Agreement):
        rollout.given_up = accuracy.given_up
    else:
        rollout.terms["accuracy"] = accuracy
    if stream == GROUNDED:
        rollout.terms["box"] = box_reward(rollout.text, query.boxes)
        rollout.terms["validity"] = box_validity(rollout.text)
    return accuracy
