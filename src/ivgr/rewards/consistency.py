"""R_cons: how well a textual response's reasoning agrees with the best grounded reasoning of its query."""

from ivgr.core.query import Query, Rollout
from ivgr.core.response import read_think
from ivgr.judge.protocol import Comparison
from ivgr.rewards.archive import Archive


def ask_consistency(rollout: Rollout, query: Query, archive: Archive) -> float | Comparison:
    """The question for the judge; 0 where the archive has no reference yet."""
    rollout.reference = archive.reference(query)
    if rollout.reference is None:
        return 0.0
    return Comparison(query.sample, rollout.reference, read_think(rollout.text), query.frame)
