"""Figures over seeds: mean and interval, an exact test of paired differences, and Holm's
adjustment for several tests."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ivgr.core.errors import UserError
from ivgr.core.resampling import LEVEL

MOST = 20  # differences that are enumerated: a million sign vectors


@dataclass(frozen=True)
class Estimate:
    """Mean of `count` seeds, with Student's 95 % interval; NaN where there is none, and NaN bounds where
    one seed says nothing of their spread."""

    mean: float
    low: float
    high: float
    count: int


def estimate(values: Sequence[float]) -> Estimate:
    if not values:
        return Estimate(math.nan, math.nan, math.nan, 0)
    count, mean = len(values), math.fsum(values) / len(values)
    if count == 1:
        return Estimate(mean, math.nan, math.nan, 1)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)
    reach = student_quantile(LEVEL, count - 1) * spread
    return Estimate(mean, mean - reach, mean + reach, count)


def student_within(t: float, freedom: int) -> float:
    """The probability that Student's t with `freedom` degrees lies in [-t, t], t ≥ 0
    (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (k - 1) / k
    series = math.sin(angle) * total
    return 2 / math.pi * (angle + series) if odd else series


def student_quantile(level: float, freedom: int) -> float:
    """The t with `student_within(t, freedom)` = level, by bisection."""
    low, high = 0.0, 1.0
    while student_within(high, freedom) < level:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if student_within(middle, freedom) < level else (low, middle)
    return high


def sign_flip_p(differences: Sequence[float]) -> float:
    """The share of all 2ⁿ ways to give n paired differences signs whose sum lies at least as far from
    0 as the one found: exact and two-sided if, without an effect, either sign is as likely.
    UserError beyond MOST differences."""
    if len(differences) > MOST:
        raise UserError(f"study: {len(differences)} paired seeds, at most {MOST} can be enumerated")
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    # Equal sums may differ in their last bits.
    slack = 1e-12 * sum(map(abs, differences))
    return float(np.mean(np.abs(sums) >= abs(math.fsum(differences)) - slack))


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p, in order: with these, all tests together err with at most the chosen probability
    (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    adjusted, worst = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = worst
    return adjusted
