"""The bootstrap: means of resampled units, and their percentile intervals."""

import math
from collections.abc import Callable

import numpy as np

SAMPLES, SEED, LEVEL = 2000, 0, 0.95


CHUNK = 100


# Column sums (…, K) over rows → a score (…,).
Statistic = Callable[[np.ndarray], np.ndarray]


def resample(units: np.ndarray, samples: int = SAMPLES, seed: int = SEED) -> np.ndarray:
    """Column sums (samples, K) of as many rows of `units` (U, K), drawn with replacement."""
    rng = np.random.default_rng(seed)
    shares = np.full(len(units), 1 / len(units))
    starts = range(0, samples, CHUNK)
    return np.concatenate(
        [rng.multinomial(len(units), shares, min(CHUNK, samples - s)) @ units for s in starts]
    )


def interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval; values that do not exist are left out."""
    known = values[~np.isnan(values)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_of_groups(sums: np.ndarray) -> np.ndarray:
    """Hits and counts of G groups (…, 2G) → the mean of the groups' means, of those there are."""
    hits, counts = np.split(sums.astype(float), 2, -1)
    with np.errstate(invalid="ignore"):
        means = hits / counts
    present = ~np.isnan(means)
    with np.errstate(invalid="ignore"):
        return np.where(present, means, 0).sum(-1) / present.sum(-1)
