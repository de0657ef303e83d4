"""The rollout archive: per query, the best grounded reasoning ever seen.

A grounded rollout qualifies when R_format = 1, R_acc = 1 and R_box > τ; the one with the
largest R_box is kept for the whole training, and its think text is the reference that the
textual stream is compared with (iVGR, arXiv 2605.31096).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ivgr.distributed.ranks import gather_lists
from ivgr.query import Query, places_of
from ivgr.rewards.format import read_think
from ivgr.settings import Share, checked


class Entry(NamedTuple):
    box_reward: float
    think: str


@checked("model.archive.")
class Archive:
    """Best qualified grounded reasoning by sample id.

    Args:
        threshold: τ, R_box must exceed it.
        persistent: Off, the reference is the best of the current iteration only.
    """

    # The shape of what a checkpoint keeps.
    state_shape = {str: (float, str)}

    def __init__(self, threshold: Share = 0.3, persistent: bool = True) -> None:
        self.threshold, self.persistent = threshold, persistent
        self.entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def reference(self, query: Query) -> str | None:
        """The reference reasoning of the query, None if none has qualified."""
        entry = self.entries.get(query.sample.id)
        return entry.think if entry else None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within, what is admitted adds to what is there also without `persistent`: for
        rollouts that an iteration scores after its first."""
        persistent, self.persistent = self.persistent, True
        try:
            yield
        finally:
            self.persistent = persistent

    def admit(self, queries: list[Query]) -> None:
        """Enters the scored grounded rollouts of `queries`, those of all ranks alike."""
        if not self.persistent:
            self.entries = {}
        best = zip(places_of(queries), map(self._best, queries), strict=True)
        found = [(place, *pair) for place, pair in best if pair is not None]
        for _, sample_id, entry in sorted(gather_lists(found), key=lambda one: one[0]):
            kept = self.entries.get(sample_id)
            if kept is None or entry.box_reward > kept.box_reward:
                self.entries[sample_id] = entry

    def _best(self, query: Query) -> tuple[str, Entry] | None:
        group = query.group("grounded")
        qualified = [r for r in group.rollouts if self._qualifies(r.terms)] if group else []
        if not qualified:
            return None
        best = max(qualified, key=lambda rollout: rollout.terms["box"])
        return query.sample.id, Entry(best.terms["box"], read_think(best.text))

    def _qualifies(self, terms: dict[str, float]) -> bool:
        """An answer that no judge gave a verdict on does not count as right."""
        return terms["format"] == 1 and terms.get("accuracy") == 1 and terms["box"] > self.threshold

    def state_dict(self) -> dict[str, list]:
        """Plain data: {sample id: [box reward, think text]}."""
        return {sample_id: list(entry) for sample_id, entry in self.entries.items()}

    def load_state_dict(self, state: dict[str, list]) -> None:
        self.entries = {sample_id: Entry(*entry) for sample_id, entry in state.items()}
