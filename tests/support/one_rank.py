"""The optimizer step of a rank that is alone, without an optimizer."""

from collections.abc import Callable

import torch


class OneRank:
    """An `OptimizerStep` whose `step` is the test's own."""

    def __init__(self, step: Callable[[], float]) -> None:
        self.step = step

    def begin_pass(self) -> None:
        """Has no copy to free."""

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def sum_ranks(self, value: float) -> float:
        return value
