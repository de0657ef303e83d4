"""R_format: one think block, one answer block; outside the grounded stream, no box."""

from ivgr.core.query import Query, Rollout
from ivgr.core.response import format_reward


def rate_format(rollout: Rollout, query: Query) -> float:
    """Returns R_format of a grounded response."""
    return format_reward(rollout.text)


def rate_plain_format(rollout: Rollout, query: Query) -> float:
    """Returns R_format of a textual or single response; a box breaks its format."""
    return format_reward(rollout.text) * ("<box>" not in rollout.text)
