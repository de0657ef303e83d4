"""A figure of held-out responses that only some data can have."""

from typing import Protocol

from ivgr.core.query import Query, Rollout


class ValidationMetric(Protocol):
    """A figure of one stream's responses, beside those that are always there."""

    stream: str
    name: str

    def __call__(self, query: Query, rollout: Rollout) -> float:
        """Returns the figure of one response."""
        ...
