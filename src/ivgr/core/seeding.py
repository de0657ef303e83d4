"""Random streams: every consumer derives its own from the run's seed and its position,
so that a resumed run needs no saved generator state to draw the same numbers."""

import hashlib
import os


def run_seed() -> int:
    """The seed of `--seed_everything`, which Lightning publishes to all processes."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part, stable across processes and versions."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
