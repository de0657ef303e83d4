"""Figures: of both streams on held-out queries while training, and of public benchmarks.

`ivgr evaluate`: rows.py (files → rows) → run.py (rows → replies → verdicts, a journal line each)
→ tables.py and compare.py (scores with intervals, differences), by the rules of options.py and
scoring.py and the table of benchmarks.py. `ivgr score`: predictions.py (files → replies) → kit.py
(VLMEvalKit's verdicts) → tables.py.
"""

from ivgr.evaluation.options import match_option

__all__ = ["match_option"]
