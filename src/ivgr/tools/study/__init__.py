"""`ivgr study`: the paper's ablation on the tiny world, paired by seed.

arms.py (what is compared, declared beforehand) → runs.py (which runs, with which settings) → work.py
(one run, one process; pool.py starts several) → examine.py (a finished policy's figures) →
statistics.py → report.py, figure.py (results.json, results.md, results.pdf and .png).
"""
