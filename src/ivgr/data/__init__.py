"""Data: shards of samples → queries ready for the policy."""
