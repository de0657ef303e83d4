"""Cold-start data from a run's own rollouts: collect → rewrite → keep → balance."""
