"""A mean with how sure it is: bootstrap over images, since what comes from one image is not
independent. In: values and the image of each. Out: `Interval`s."""

import math
from dataclasses import dataclass

import numpy as np

from ivgr.core.resampling import interval, resample


@dataclass(frozen=True)
class Interval:
    """mean and its 95 % interval from low to high, over `count` images; all NaN where that is 0."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_interval(values: np.ndarray, images: np.ndarray) -> Interval:
    """Returns the mean of values (n,) from images (n,) with its interval; NaN does not count."""
    return mean_intervals(np.asarray(values)[:, None], images)[0]


def mean_intervals(values: np.ndarray, images: np.ndarray) -> list[Interval]:
    """Returns the same for each of K columns of values (n, K)."""
    known = ~np.isnan(values)
    return ratio_intervals(np.where(known, values, 0.0), known.astype(float), images)


def ratio_intervals(above: np.ndarray, below: np.ndarray, images: np.ndarray) -> list[Interval]:
    """Returns the ratio of the sum of above (n, K) to that of below (n, K) for each of K columns; an image
    counts if it has anything in below."""
    width = above.shape[1]
    table = _sum_by_image(np.concatenate([above, below], 1), images)
    sums = resample(table) if len(table) else np.zeros((0, 2 * width))
    total, counts = table.sum(0), (table[:, width:] != 0).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios, means = sums[:, :width] / sums[:, width:], total[:width] / total[width:]
    return [
        Interval(float(means[k]), *interval(ratios[:, k]), int(counts[k]))
        if counts[k]
        else Interval(math.nan, math.nan, math.nan, 0)
        for k in range(width)
    ]


def _sum_by_image(values: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Column sums (U, K) of the rows of each image."""
    names, index = np.unique(images, return_inverse=True)
    table = np.zeros((len(names), values.shape[1]))
    np.add.at(table, index, values)
    return table
