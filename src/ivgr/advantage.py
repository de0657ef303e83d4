"""Group-relative advantages: one group is the N rollouts of one query in one stream.

Source: GRPO (arXiv 2402.03300) as iVGR uses it (arXiv 2605.31096).
"""

from collections.abc import Sequence

import torch


def group_advantages(rewards: Sequence[float], eps: float = 1e-6) -> list[float]:
    """(R - mean) / (std + eps) with the sample std (N - 1); all zero when all are equal."""
    values = torch.tensor(rewards, dtype=torch.float64)
    if bool((values == values[0]).all()):
        return [0.0] * len(values)
    return ((values - values.mean()) / (values.std() + eps)).tolist()
