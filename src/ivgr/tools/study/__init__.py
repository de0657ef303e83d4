"""`ivgr study`: the paper's ablation on the tiny world, paired by seed.

variants.py (the comparisons, declared beforehand) → study_runs.py (the runs and their settings) → worker.py
(one run in one process; process_pool.py starts several) → policy_report.py (figures of a trained policy) →
significance.py → study_report.py, study_figure.py (results.json, results.md, results.pdf and .png).
"""
