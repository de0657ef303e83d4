"""The weighted reward of every rollout, stream by stream.

grounded: R_format + R_acc + R_box; textual: R_format + R_acc + R_cons; single: R_format +
1.5·R_acc (weights are settings). A box in a textual or single response breaks its format.
Grounded rollouts enter the archive before the textual ones are compared with it.
"""

from dataclasses import dataclass

from ivgr.archive import Archive
from ivgr.data.prompts import GROUNDED, SINGLE, TEXTUAL
from ivgr.judge.protocol import Judge
from ivgr.query import Query, Rollout
from ivgr.rewards.accuracy import accuracy_reward
from ivgr.rewards.boxes import box_reward, box_validity
from ivgr.rewards.format import format_reward, read_think


@dataclass
class Term:
    """weight: factor of the term in the sum; 0 switches it off (it is still logged)."""

    weight: float = 1.0


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

    def score(self, queries: list[Query], judge: Judge, archive: Archive) -> None:
        """Fills `terms`, `reference` and `reward` of every rollout; the archive grows."""
        for query in queries:
            for group in query.groups:
                for rollout in group.rollouts:
                    _score_alone(rollout, query, group.stream, judge)
        archive.admit(queries)
        for query in queries:
            _compare(query, judge, archive.reference(query))
            for group in query.groups:
                weights = self.weights[group.stream]
                for rollout in group.rollouts:
                    rollout.reward = sum(weights[name] * value for name, value in rollout.terms.items())


def _score_alone(rollout: Rollout, query: Query, stream: str, judge: Judge) -> None:
    boxes_allowed = stream == GROUNDED or "<box>" not in rollout.text
    rollout.terms = {
        "format": format_reward(rollout.text) * boxes_allowed,
        "accuracy": accuracy_reward(query.sample, rollout.text, judge),
    }
    if stream == GROUNDED:
        rollout.terms["box"] = box_reward(rollout.text, query.boxes)
        rollout.terms["validity"] = box_validity(rollout.text)


def _compare(query: Query, judge: Judge, reference: str | None) -> None:
    """R_cons of the textual rollouts; 0 where there is no reference."""
    group = query.group(TEXTUAL)
    for rollout in group.rollouts if group else ():
        rollout.reference = reference
        rollout.terms["consistency"] = (
            judge.consistency(query.sample, reference, read_think(rollout.text), query.frame)
            if reference is not None
            else 0.0
        )
