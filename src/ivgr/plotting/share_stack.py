"""The consistency scores over training as one picture: TensorBoard has no chart of stacked shares.

In: the share of each score, iteration by iteration. Out: an RGB array.
"""

from collections.abc import Sequence

import numpy as np

from ivgr.judge.protocol import CONSISTENCY_SCORES

NAMES = ("red", "orange", "light green", "dark green")
SHADES = ((178, 58, 72), (229, 160, 111), (156, 197, 161), (53, 114, 102))
LEGEND = ", ".join(f"{score:g} {name}" for score, name in zip(CONSISTENCY_SCORES, NAMES, strict=True))
SIZE = (320, 640)


def shares_of(metrics: dict[str, float]) -> list[float]:
    """The share of each score in an iteration's metrics; empty if it has none."""
    names = [f"consistency/share_{score:g}" for score in CONSISTENCY_SCORES]
    return [metrics[name] for name in names if name in metrics]


def paint_shares(history: Sequence[Sequence[float]], size: tuple[int, int] = SIZE) -> np.ndarray:
    """The shares as (height, width, 3) uint8: iterations from left to right, the lowest score at the
    bottom; white where nothing was compared."""
    height, width = size
    columns = np.arange(width) * len(history) // width
    borders = np.cumsum(history, axis=1)[columns]
    level = (np.arange(height)[::-1] + 0.5) / height
    scores = (level[:, None, None] > borders).sum(-1)
    return np.array([*SHADES, (255, 255, 255)], np.uint8)[scores]
