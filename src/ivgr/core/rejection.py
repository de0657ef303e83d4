"""Samples that cannot be used: the exception that says why, the record of it that travels to
the training process, and the share of them that a run puts up with."""

from collections import Counter
from dataclasses import dataclass

from ivgr.core.errors import UserError


class RejectedSample(UserError):
    """A sample that cannot be used: `reason` names the kind of breakage in two words ("image:
    truncated"), the message names the sample. id and kind are "" while unknown."""

    def __init__(self, message: str, reason: str = "sample: broken") -> None:
        super().__init__(message)
        self.reason = reason
        self.id = ""
        self.kind = ""


@dataclass(frozen=True)
class Rejection:
    """One rejected sample: reason and message of its `RejectedSample`, and where it lies."""

    reason: str
    message: str
    shard: str
    key: str = ""
    id: str = ""
    kind: str = ""

    @classmethod
    def of(cls, error: RejectedSample, shard: str, key: str = "", id: str = "") -> "Rejection":
        return cls(error.reason, str(error), shard, key, id or error.id, error.kind)


def check_share(counts: Counter, seen: int, limit: float, first: str) -> None:
    """UserError if more than `limit` of `seen` samples were rejected; it lists `counts` by
    reason and ends with `first`, the message of one of them."""
    if counts.total() > limit * seen:
        reasons = ", ".join(f"{reason} {count}" for reason, count in counts.most_common())
        raise UserError(
            f"data: {counts.total()} of {seen} samples rejected ({reasons}), more than data.max_rejected "
            f"{limit:g}; mend or remove them, or raise the limit; one of them: {first}"
        )
