"""Rewards: pure functions, a file each, weighted by `Rewards`."""

from ivgr.rewards.boxes import box_reward, box_validity, parse_boxes
from ivgr.rewards.format import format_reward
from ivgr.rewards.mathematics import math_match

__all__ = ["box_reward", "box_validity", "format_reward", "math_match", "parse_boxes"]
