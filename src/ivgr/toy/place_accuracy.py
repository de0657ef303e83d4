"""Whether textual reasoning names the right places, which only the tiny world's sentences can show."""

from ivgr.core.boxes import grid_cell
from ivgr.core.prompts import TEXTUAL
from ivgr.core.query import Query, Rollout
from ivgr.core.response import read_think
from ivgr.toy.statements import read_claims


class PlaceAccuracy:
    """Share of responses whose reasoning gives every object asked about the place of its gold box's centre,
    and no other; a `ValidationMetric`."""

    stream = TEXTUAL
    name = "place_accuracy"

    def __call__(self, query: Query, rollout: Rollout) -> float:
        return float(names_places(query, read_think(rollout.text)))


def names_places(query: Query, reasoning: str) -> bool:
    """Whether `reasoning` gives every labelled object the place of its gold box's centre, and no other."""
    width, height = query.frame.width, query.frame.height
    claims = read_claims(reasoning, width, height)
    stated = {
        label: {value for name, attribute, value in claims if (name, attribute) == (label, "place")}
        for label in query.sample.labels
    }
    return bool(stated) and all(
        stated[label] == {grid_cell(box, width, height)}
        for label, box in zip(query.sample.labels, query.boxes, strict=True)
    )
