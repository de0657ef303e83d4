"""The count of a run's rejected samples, and the file that lists each of them once."""

import json
from collections import Counter
from pathlib import Path

from ivgr.core.atomic_files import write_atomically
from ivgr.core.readers import read_json_lines
from ivgr.core.rejection import Rejection, check_share

MINIMUM = 100  # samples to see before the share means anything


class Quarantine:
    """Counts draws by reason; a sample drawn twice counts twice, and is listed once.

    Args:
        path: The list, a JSON object a line; None writes none.
        limit: Largest share of rejected draws, among at least `MINIMUM`.
    """

    def __init__(self, path: Path | None, limit: float) -> None:
        self.path = path
        self.limit = limit
        self.counts: Counter = Counter()
        self.seen = 0
        self._listed: set[tuple] | None = None

    def add(self, rejected: list[Rejection], seen: int) -> None:
        """Lists the `rejected` of `seen` draws and counts them; UserError, with the counts left
        as they were, when the share is now above the limit."""
        self._list(rejected)
        counts = self.counts + Counter(rejection.reason for rejection in rejected)
        if rejected and self.seen + seen >= MINIMUM:
            check_share(counts, self.seen + seen, self.limit, rejected[0].message)
        self.counts = counts
        self.seen += seen

    def metrics(self) -> dict[str, float]:
        """Returns the metrics by name."""
        shares = {"data/rejected_share": self.counts.total() / max(self.seen, 1)}
        return shares | {f"data/rejected/{reason}": float(count) for reason, count in self.counts.items()}

    def forget(self) -> None:
        """Removes the list that an earlier run has left."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        self._listed = None

    def state_dict(self) -> dict:
        return {"counts": dict(self.counts), "seen": self.seen}

    def load_state_dict(self, state: dict) -> None:
        self.counts = Counter(state["counts"])
        self.seen = state["seen"]

    def _list(self, rejected: list[Rejection]) -> None:
        if self.path is None or not rejected:
            return
        if self._listed is None:
            self._listed = self._read(self.path)
        new = {_name(vars(rejection)): rejection for rejection in rejected}
        rows = [_row(rejection) for name, rejection in new.items() if name not in self._listed]
        self._listed |= new.keys()
        with self.path.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))

    @staticmethod
    def _read(path: Path) -> set[tuple]:
        """Returns what is listed already; drops a line that a killed run left half written."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            return set()
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            write_atomically(path, data[: data.rfind(b"\n") + 1])
        rows = read_json_lines(path, "remove it, or restore it", ("shard", "key", "reason"))
        return set(map(_name, rows))


def _name(row: dict) -> tuple:
    return row["shard"], row["key"], row["reason"]


def _row(rejection: Rejection) -> dict:
    names = ("id", "shard", "key", "reason", "message")
    return {name: getattr(rejection, name) for name in names}
