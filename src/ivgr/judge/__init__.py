"""Judges: who decides what no rule can. See `ivgr.judge.protocol`."""

from ivgr.judge.protocol import CONSISTENCY_SCORES, Judge
from ivgr.judge.rule import RuleJudge

__all__ = ["CONSISTENCY_SCORES", "Judge", "RuleJudge"]
