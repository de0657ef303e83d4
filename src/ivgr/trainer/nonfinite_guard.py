"""The guard against losses and gradients that are not finite.

In: the statistics of an update before its step. Out: whether to step, or one clear line that ends the run.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from ivgr.core.errors import UserError
from ivgr.core.settings import PositiveFloat, PositiveInt, checked
from ivgr.core.sharding import local_part
from ivgr.kernels import TokenStatistics


@checked("model.guard.")
@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """When a run that goes wrong is stopped."""

    patience: PositiveInt = 3
    """Updates in a row that may be skipped, because the loss or a gradient is not finite, before the run
    stops."""

    engine_timeout: PositiveFloat | None = None
    """Seconds after which a rollout engine that has not returned ends the run; null waits for ever. It covers
    whatever releases Python's lock while it hangs: a network, another process, a GPU."""

    judge_timeout: PositiveFloat | None = 1700.0
    """The same for a judge; null waits for ever. Ranks that wait for another's judge give up after 1800 s
    (Lightning's time limit of a collective) and cannot say why."""


class NonFiniteGuard:
    """Skips updates whose loss or gradient is not finite, on all ranks alike.

    skipped counts the skipped updates of the whole run; `patience` of them in a row raise UserError.
    """

    def __init__(self, patience: int = 3) -> None:
        self.patience = patience
        self.skipped = 0
        self.in_a_row = 0
        self.finite: torch.Tensor | None = None
        self.norms: deque[float] = deque(maxlen=5)

    def watch(self, statistics: TokenStatistics) -> None:
        """Records, on the device, whether a micro-batch's logits and loss are finite."""
        loss = cast(torch.Tensor, statistics.loss)
        finite = torch.stack([statistics.logp.isfinite().all(), loss.isfinite()])
        self.finite = finite if self.finite is None else self.finite & finite

    def _find_fault(self) -> str | None:
        """Returns what was not finite in the micro-batches since the last step."""
        logits, loss = (True, True) if self.finite is None else self.finite.tolist()
        self.finite = None
        if not logits:
            return "the policy's logits are"
        return None if loss else "the loss is (the logits are finite)"

    def admits(self, norm: float, policy: nn.Module, lr: float, sum_ranks: Callable[[float], float]) -> bool:
        """Returns whether to step, given the gradient norm before clipping; all ranks must call it."""
        fault = self._find_fault()
        if fault is None and not math.isfinite(norm):
            fault = "a gradient is (the loss is finite)"
        if not sum_ranks(float(fault is not None)):
            self.norms.append(norm)
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= self.patience:
            raise UserError(self._diagnose(fault or "on another rank something is", policy, lr, sum_ranks))
        return False

    def _diagnose(self, fault: str, policy: nn.Module, lr: float, sum_ranks: Callable) -> str:
        """Returns the line that ends the run. All ranks must call it: each sees only its shard of a
        gradient."""
        broken = (
            name
            for name, parameter in policy.named_parameters()
            if parameter.grad is not None and sum_ranks(float(not _is_finite(parameter.grad)))
        )
        norms = ", ".join(f"{norm:.3g}" for norm in self.norms) or "none"
        return (
            f"{self.in_a_row} updates in a row were skipped: {fault} not finite; first such gradient: "
            f"{next(broken, 'none')}; learning rate {lr:.3g}; gradient norms before: {norms}. "
            "Lower model.update.optimizer.lr, or use float32 weights"
        )


def _is_finite(gradient: torch.Tensor) -> bool:
    """Whether a gradient is finite; of a sharded one, this rank's shard."""
    return bool(local_part(gradient).isfinite().all())
