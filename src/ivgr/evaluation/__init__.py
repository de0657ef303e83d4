"""Held-out figures of both streams while training, and the rule by which an answer names an option.

held_out.py (responses → figures); options.py (an answer → a letter), which the benchmarks use too.
"""

from ivgr.evaluation.options import match_option

__all__ = ["match_option"]
