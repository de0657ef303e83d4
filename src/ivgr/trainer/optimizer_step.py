"""The optimizer step on all ranks.

In: a loss of this rank. Out: one step of all ranks together, or none.
"""

import math
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_, get_total_norm

from ivgr.core.sharding import is_sharded
from ivgr.distributed.collectives import sum_ranks
from ivgr.distributed.fsdp import Replica
from ivgr.trainer.nonfinite_guard import NonFiniteGuard
from ivgr.trainer.optimizer import sum_gradients


class OptimizerStep(Protocol):
    """Turns losses into an update of the policy."""

    def begin_pass(self) -> None:
        """Is called before each pass with gradients: frees the copy of the policy that rolled out."""
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of `loss`."""
        ...

    def step(self) -> float:
        """Steps the optimizer and clears the gradients; returns the gradient norm before clipping. All ranks
        must call it."""
        ...

    def sum_ranks(self, value: float) -> float:
        """Returns the sum of all ranks' values; all ranks must call it."""
        ...


class OneProcessStep:
    """The `OptimizerStep` of a single process, without a schedule.

    Args:
        parameters: The parameters that are trained.
        optimizer: The optimizer over them.
        clip_norm: Largest gradient norm.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
        clip_norm: float = 1.0,
    ) -> None:
        self.parameters = list(parameters)
        self.optimizer = optimizer
        self.clip_norm = clip_norm

    def begin_pass(self) -> None:
        """Has no copy to free."""

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self) -> float:
        norm = clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm.item()

    def sum_ranks(self, value: float) -> float:
        return value


class LightningOptimizerStep:
    """The `OptimizerStep` of an `ivgr.trainer.base_module.PolicyModule`.

    Args:
        module: Has policy, scheduler, update (settings) and a trainer.
        guard: Decides whether to step.
        replica: The copy that rolls out if weights are sharded; FSDP sums their gradients in the backward
            pass already.
    """

    def __init__(self, module: Any, guard: NonFiniteGuard, replica: Replica | None) -> None:
        self.module = module
        self.guard = guard
        self.replica = replica

    def begin_pass(self) -> None:
        if self.replica is not None:
            self.replica.invalidate()

    def backward(self, loss: torch.Tensor) -> None:
        with getattr(self.module.trainer.strategy.model, "no_sync", nullcontext)():
            self.module.manual_backward(loss)

    def step(self) -> float:
        """Sums gradients over ranks (the loss is already divided by all ranks' tokens), steps the schedule,
        clips, and steps the optimizer unless the guard skips it; returns the norm before clipping."""
        module, parameters = self.module, list(self.module.policy.parameters())
        if module.trainer.world_size > 1 and self.replica is None:
            sum_gradients(parameters)
        optimizer = module.optimizers()
        module.scheduler.step(module.trainer.global_step + self.guard.skipped)
        split_norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        norm = (split_norm.full_tensor() if is_sharded(split_norm) else split_norm).item()
        if self.guard.admits(norm, module.policy, optimizer.param_groups[0]["lr"], self.sum_ranks):
            clip_grads_with_norm_(parameters, module.update.clip_norm or math.inf, split_norm)
            optimizer.step()
        optimizer.zero_grad()
        return norm

    def sum_ranks(self, value: float) -> float:
        return sum_ranks(value, self.module.device)
