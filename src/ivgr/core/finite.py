"""Numbers that are NaN or infinite, found in a pass over memory that costs little."""

from collections.abc import Iterable

import torch

from ivgr.core.sharding import local_part


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all numbers are, of a split tensor this rank's. A NaN shows in the extremes, which are
    found many times faster than each number is looked at."""
    own = local_part(tensor)
    if not own.numel() or not own.is_floating_point():
        return True
    return bool(torch.stack(torch.aminmax(own.detach())).isfinite().all())


def find_not_finite(named: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor with a number that is not finite."""
    return next((name for name, tensor in named if not is_finite(tensor)), None)
