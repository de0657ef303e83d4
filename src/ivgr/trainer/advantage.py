"""Group-relative advantages: one group is the N rollouts of one query in one stream.

Source: GRPO (arXiv 2402.03300) as iVGR uses it (arXiv 2605.31096).
"""

import math
from collections.abc import Sequence

import torch


def group_advantages(rewards: Sequence[float | None], eps: float = 1e-6) -> list[float]:
    """Returns (R - mean) / (std + eps) with the sample std (N - 1); all 0.0 if all rewards are equal.

    A reward that is None (its verdict is missing) or not finite counts in neither mean nor std and gets the
    advantage 0.0; with fewer than two known rewards all advantages are 0.0.
    """
    rewards = [reward if reward is not None and math.isfinite(reward) else None for reward in rewards]
    known = [reward for reward in rewards if reward is not None]
    if len(set(known)) < 2:
        return [0.0] * len(rewards)
    values = torch.tensor(known, dtype=torch.float64)
    mean, std = values.mean().item(), values.std().item()
    return [0.0 if reward is None else (reward - mean) / (std + eps) for reward in rewards]
