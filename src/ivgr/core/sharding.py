"""The one question whether something is split over ranks."""

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def is_sharded(owner: object) -> bool:
    """Whether a tensor, a model's weights, or those of the run that a strategy leads are split over ranks."""
    return isinstance(owner, FSDPModule | DTensor) or getattr(owner, "shards_weights", False)


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a split tensor; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
