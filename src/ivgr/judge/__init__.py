"""Judges: who decides what no rule can. See `ivgr.judge.protocol`."""

from ivgr.core.face import lazy_face
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
__getattr__ = lazy_face(__name__, {"LLMJudge": "llm", "LocalJudge": "local"})
