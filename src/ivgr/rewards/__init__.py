"""Rewards: pure functions, a file each, weighted by `Rewards`."""

from ivgr.rewards.boxes import box_reward, box_validity, parse_boxes
from ivgr.rewards.format import format_reward

__all__ = ["box_reward", "box_validity", "format_reward", "parse_boxes"]
