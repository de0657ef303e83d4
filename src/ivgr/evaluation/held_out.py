"""Greedy evaluation of both streams on held-out paired queries."""

from torch import nn
from torchmetrics import MeanMetric

from ivgr.data.prompts import GROUNDED, TEXTUAL
from ivgr.judge.protocol import Agreement, Judge
from ivgr.query import Query, Rollout
from ivgr.rewards.accuracy import read_accuracy
from ivgr.rewards.boxes import box_reward
from ivgr.rewards.format import format_reward, read_think
from ivgr.rewards.total import ask_once

# Known only to a judge that reads what reasoning says of places.
PLACES = "place_accuracy"
FIGURES = {
    GROUNDED: ("accuracy", "format", "iou", "length"),
    TEXTUAL: ("accuracy", "format", PLACES, "length"),
}
RARE = ("unjudged", "math_given_up")


class HeldOutFigures(nn.Module):
    """Means over responses, equal on all ranks.

    accuracy: R_acc, 0 for a response that breaks the format; format: R_format; iou: R_box;
    place_accuracy, with a judge that has `names_places`: share of responses whose reasoning names a
    place for every object asked about, each being the place of its gold box's centre; length: tokens.
    Where there are any: unjudged, the share of responses without the judge's verdict, which
    accuracy leaves out; math_given_up, of those whose mathematics took too long to compare (not equal).
    """

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge = judge
        unknown = () if hasattr(judge, "names_places") else (PLACES,)
        self.means = nn.ModuleDict(
            {
                stream: nn.ModuleDict({name: MeanMetric() for name in (*names, *RARE) if name not in unknown})
                for stream, names in FIGURES.items()
            }
        )

    def update(self, queries: list[Query]) -> None:
        """Adds the rollouts of `queries`."""
        found = [
            (group.stream, rollout, self._figures(query, rollout))
            for query in queries
            for group in query.groups
            for rollout in group.rollouts
        ]
        questions = [(r, f["accuracy"]) for _, r, f in found if isinstance(f["accuracy"], Agreement)]
        verdicts = ask_once(self.judge.agree, questions)
        for stream, _, figures in found:
            accuracy = figures["accuracy"]
            figures["accuracy"] = verdicts[accuracy] if isinstance(accuracy, Agreement) else accuracy
            figures["unjudged"] = float(figures["accuracy"] is None)
            figures["math_given_up"] = float(isinstance(accuracy, Agreement) and accuracy.given_up)
            for name, mean in self.means[stream].items():
                if figures[name] is not None:
                    mean.update(float(figures[name]))

    def compute(self) -> dict[str, dict[str, float]]:
        figures = {
            stream: {name: mean.compute().item() for name, mean in means.items()}
            for stream, means in self.means.items()
        }
        return {
            stream: {name: value for name, value in values.items() if name not in RARE or value}
            for stream, values in figures.items()
        }

    def _figures(self, query: Query, rollout: Rollout) -> dict[str, float | Agreement]:
        """Of one response; its accuracy may be a question for the judge."""
        well_formed = format_reward(rollout.text)
        figures = {
            "format": well_formed,
            "accuracy": read_accuracy(query.sample, rollout.text) if well_formed else 0.0,
            "iou": box_reward(rollout.text, query.boxes),
            "length": float(len(rollout.tokens)),
        }
        if PLACES in self.means[TEXTUAL]:
            figures[PLACES] = float(self.judge.names_places(query, read_think(rollout.text)))
        return figures
