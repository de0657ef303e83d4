"""Greedy evaluation of both streams on held-out paired queries."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torchmetrics import MeanMetric

from ivgr.core.metric import ValidationMetric
from ivgr.core.prompts import GROUNDED, TEXTUAL
from ivgr.core.query import Query, Rollout
from ivgr.core.response import format_reward
from ivgr.judge.protocol import Agreement, Judge
from ivgr.rewards.accuracy import read_accuracy
from ivgr.rewards.box_terms import box_reward
from ivgr.rewards.scorer import judge_unique

FIGURES = {GROUNDED: ("accuracy", "format", "iou"), TEXTUAL: ("accuracy", "format")}
RARE = ("unjudged", "math_given_up")
Figures = dict[str, dict[str, float]]  # stream → name → value


def names_of(metrics: Sequence[ValidationMetric] = ()) -> dict[str, tuple[str, ...]]:
    """The figures by stream, without those that are rare."""
    return {
        stream: (*names, *(metric.name for metric in metrics if metric.stream == stream), "length")
        for stream, names in FIGURES.items()
    }


def tags_of(metrics: Sequence[ValidationMetric] = ()) -> list[str]:
    """Returns the names that validation may log."""
    return [f"val/{stream}/{name}" for stream, names in names_of(metrics).items() for name in (*names, *RARE)]


class HeldOutFigures(nn.Module):
    """Means over responses, equal on all ranks.

    accuracy: R_acc, 0 for a response that breaks the format; format: R_format; iou: R_box;
    length: tokens; and the figures of `metrics`.
    Where there are any: unjudged, the share of responses without the judge's verdict, which
    accuracy leaves out; math_given_up, of those whose mathematics took too long to compare (not equal).
    """

    def __init__(self, judge: Judge, metrics: Sequence[ValidationMetric] = ()) -> None:
        super().__init__()
        self.judge = judge
        self.metrics = metrics
        self.means: Any = nn.ModuleDict(
            {
                stream: nn.ModuleDict({name: MeanMetric() for name in (*names, *RARE)})
                for stream, names in names_of(metrics).items()
            }
        )

    def update(self, queries: list[Query]) -> None:
        """Adds the rollouts of `queries`."""
        found = [
            (group.stream, rollout, self._figures(query, group.stream, rollout))
            for query in queries
            for group in query.groups
            for rollout in group.rollouts
        ]
        questions = [f["accuracy"] for _, _, f in found if isinstance(f["accuracy"], Agreement)]
        verdicts = judge_unique(self.judge.agree, questions)
        for stream, _, figures in found:
            accuracy = figures["accuracy"]
            figures["accuracy"] = verdicts[accuracy] if isinstance(accuracy, Agreement) else accuracy
            figures["unjudged"] = float(figures["accuracy"] is None)
            figures["math_given_up"] = float(isinstance(accuracy, Agreement) and accuracy.given_up)
            for name, mean in self.means[stream].items():
                if figures[name] is not None:
                    mean.update(float(figures[name]))

    def compute(self) -> Figures:
        figures = {
            stream: {name: mean.compute().item() for name, mean in means.items()}
            for stream, means in self.means.items()
        }
        return {
            stream: {name: value for name, value in values.items() if name not in RARE or value}
            for stream, values in figures.items()
        }

    def _figures(self, query: Query, stream: str, rollout: Rollout) -> dict[str, Any]:
        """Returns the figures of one response; its accuracy may be a question for the judge."""
        well_formed = format_reward(rollout.text)
        figures = {
            "format": well_formed,
            "accuracy": read_accuracy(query.sample, rollout.text) if well_formed else 0.0,
            "iou": box_reward(rollout.text, query.boxes),
            "length": float(len(rollout.tokens)),
        }
        own = [metric for metric in self.metrics if metric.stream == stream]
        return figures | {metric.name: metric(query, rollout) for metric in own}
