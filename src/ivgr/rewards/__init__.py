"""Rewards: pure functions, a file each, weighted by `Rewards`."""

from ivgr.core.boxes import parse_boxes
from ivgr.core.face import lazy_face
from ivgr.core.response import format_reward
from ivgr.rewards.box_terms import box_reward, box_validity
from ivgr.rewards.mathematics import math_match

__all__ = ["Archive", "box_reward", "box_validity", "format_reward", "math_match", "parse_boxes"]
__getattr__ = lazy_face(__name__, {"Archive": "archive"})
