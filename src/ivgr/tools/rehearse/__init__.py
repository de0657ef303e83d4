"""One iteration of a recipe on a GPU that does nothing: null_gpu.py (and nullgpu.c), host_integers.py,
stand_ins.py, unread_models.py, phases.py, peak_lines.py, recipe.py, longest_queries.py, rollout_phase.py,
rehearsal.py, report.py, rehearse.py (`ivgr rehearse`)."""
