"""The rollout archive: per query, the best grounded reasoning ever seen.

A grounded rollout qualifies when R_format = 1, R_acc = 1 and R_box > τ; the one with the
largest R_box is kept for the whole training, and its think text is the reference that the
textual stream is compared with (iVGR, arXiv 2605.31096).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ivgr.core.query import Query, global_indices
from ivgr.core.response import read_think
from ivgr.core.settings import Share, checked
from ivgr.distributed.collectives import gather_lists

BETWEEN = "\x1f"  # ASCII's unit separator: source from id


class Entry(NamedTuple):
    box_reward: float
    think: str


@checked("model.rewards.archive.")
class Archive:
    """The best qualified grounded reasoning by sample id, and by source if there are several (ids of two
    sources may collide).

    Args:
        threshold: τ, R_box must exceed it.
        persistent: Whether entries outlive their iteration; if not, the reference is the best of the
            current iteration.
    """

    # The shape of what a checkpoint keeps.
    state_shape = {str: (float, str)}

    def __init__(self, threshold: Share = 0.3, persistent: bool = True) -> None:
        self.threshold = threshold
        self.persistent = persistent
        self.entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def reference(self, query: Query) -> str | None:
        """Returns the reference reasoning of the query; None if no rollout has qualified."""
        entry = self._find(query.source, query.sample.id)
        return entry.think if entry else None

    def _find(self, source: int | None, sample_id: str) -> Entry | None:
        """Finds the entry of the query; old checkpoints do not tell sources apart."""
        return self.entries.get(key_of(source, sample_id)) or self.entries.get(sample_id)

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """In the block, `admit` adds to the entries even if the archive is not persistent: for rollouts that
        an iteration scores in a second round."""
        persistent, self.persistent = self.persistent, True
        try:
            yield
        finally:
            self.persistent = persistent

    def admit(self, queries: list[Query]) -> None:
        """Enters the qualified grounded rollouts of the scored `queries`; all ranks enter those of all."""
        if not self.persistent:
            self.entries = {}
        best = zip(global_indices(queries), map(self._best, queries), strict=True)
        found = [(place, *one) for place, one in best if one is not None]
        for _, source, sample_id, entry in sorted(gather_lists(found), key=lambda one: one[0]):
            kept = self._find(source, sample_id)
            if kept is None or entry.box_reward > kept.box_reward:
                if source is not None:
                    self.entries.pop(sample_id, None)
                self.entries[key_of(source, sample_id)] = entry

    def _best(self, query: Query) -> tuple[int | None, str, Entry] | None:
        group = query.group("grounded")
        qualified = [r for r in group.rollouts if self._qualifies(r.terms)] if group else []
        if not qualified:
            return None
        best = max(qualified, key=lambda rollout: rollout.terms["box"])
        return query.source, query.sample.id, Entry(best.terms["box"], read_think(best.text))

    def _qualifies(self, terms: dict[str, float]) -> bool:
        """Whether the rollout may enter; an answer without a verdict does not count as right."""
        return terms["format"] == 1 and terms.get("accuracy") == 1 and terms["box"] > self.threshold

    def state_dict(self) -> dict[str, list]:
        """Returns plain data: {key: [box reward, think text]}."""
        return {key: list(entry) for key, entry in self.entries.items()}

    def load_state_dict(self, state: dict[str, list]) -> None:
        self.entries = {key: Entry(*entry) for key, entry in state.items()}


def key_of(source: int | None, sample_id: str) -> str:
    """Returns the sample id, preceded by the source's index if there are several sources."""
    return sample_id if source is None else f"{source}{BETWEEN}{sample_id}"


def read_key(key: str) -> tuple[str, str]:
    """Returns the source ("" if the key does not name it) and the sample id."""
    source, between, sample_id = key.partition(BETWEEN)
    return (source, sample_id) if between and source.isdecimal() else ("", key)
