"""What a run needs, before any GPU is rented: run.py (read from the config), memory.py, work.py,
command.py (`ivgr plan`)."""
