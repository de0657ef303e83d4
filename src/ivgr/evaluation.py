"""Greedy evaluation of both streams on held-out paired queries."""

from torch import nn
from torchmetrics import MeanMetric

from ivgr.data.prompts import GROUNDED, TEXTUAL
from ivgr.judge.protocol import Judge
from ivgr.query import Query, Rollout
from ivgr.rewards.accuracy import accuracy_reward
from ivgr.rewards.boxes import box_reward
from ivgr.rewards.format import format_reward, read_think
from ivgr.world.claims import place_of, read_claims

FIGURES = {
    GROUNDED: ("accuracy", "format", "iou", "length"),
    TEXTUAL: ("accuracy", "format", "place_accuracy", "length"),
}


class HeldOutFigures(nn.Module):
    """Means over responses, equal on all ranks.

    accuracy: R_acc, 0 for a response that breaks the format; format: R_format; iou: R_box;
    place_accuracy: share of responses whose reasoning names a place for every object asked
    about, each being the place of its gold box's centre; length: tokens.
    """

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.ModuleDict(
            {
                stream: nn.ModuleDict({name: MeanMetric() for name in names})
                for stream, names in FIGURES.items()
            }
        )

    def update(self, queries: list[Query], judge: Judge) -> None:
        """Adds the rollouts of `queries`."""
        for query in queries:
            for group in query.groups:
                for rollout in group.rollouts:
                    figures = _figures(query, rollout, judge)
                    for name, mean in self.means[group.stream].items():
                        mean.update(figures[name])

    def compute(self) -> dict[str, dict[str, float]]:
        return {
            stream: {name: mean.compute().item() for name, mean in means.items()}
            for stream, means in self.means.items()
        }


def _figures(query: Query, rollout: Rollout, judge: Judge) -> dict[str, float]:
    well_formed = format_reward(rollout.text)
    return {
        "format": well_formed,
        "accuracy": well_formed * accuracy_reward(query.sample, rollout.text, judge),
        "iou": box_reward(rollout.text, query.boxes),
        "place_accuracy": float(names_places(query, rollout.text)),
        "length": float(len(rollout.tokens)),
    }


def names_places(query: Query, text: str) -> bool:
    """Whether the think block of `text` gives every labelled object the place of its gold
    box's centre, and no other."""
    width, height = query.frame.width, query.frame.height
    claims = read_claims(read_think(text), width, height)
    stated = {
        label: {value for name, attribute, value in claims if (name, attribute) == (label, "place")}
        for label in query.sample.labels
    }
    return bool(stated) and all(
        stated[label] == {place_of(box, width, height)}
        for label, box in zip(query.sample.labels, query.boxes, strict=True)
    )
