"""The needs of a run before any GPU is rented: run_spec.py (read from the config), plan_memory.py, flops.py,
plan.py (`ivgr plan`)."""
