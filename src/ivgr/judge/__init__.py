"""Judges: who decides what no rule can. See `ivgr.judge.protocol`."""

from ivgr.judge.llm import LLMJudge
from ivgr.judge.local import LocalJudge
from ivgr.judge.protocol import CONSISTENCY_SCORES, Agreement, Comparison, Judge, RulesAlone

__all__ = [
    "CONSISTENCY_SCORES",
    "Agreement",
    "Comparison",
    "Judge",
    "LLMJudge",
    "LocalJudge",
    "RulesAlone",
]
