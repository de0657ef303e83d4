"""Memory that runs out: what PyTorch raises then, and how a call is tried."""

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

# Of errors that are no torch.OutOfMemoryError: main memory, and cuBLAS, which allocates by itself.
MESSAGES = ("DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def unless_out_of_memory(call: Callable[[], T]) -> T | None:
    """`call()`; None where memory ran out in it, and whatever it had made is freed."""
    try:
        return call()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Only here are the failed call's frames gone, and what they held.
    torch.cuda.empty_cache()
    return None


def is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in MESSAGES)
