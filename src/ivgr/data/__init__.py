"""Data: shards of samples → queries ready for the policy."""

import os

# WebDataset reads it when it is imported: no path of its own runs a command.
os.environ.setdefault("WDS_SECURE", "1")
