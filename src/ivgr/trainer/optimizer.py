"""Optimizer and schedule by name: any of timm's factories, and torchao's low-bit optimizers."""

from dataclasses import dataclass, field
from typing import Any, Literal

import timm
import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from ivgr.core.errors import UserError, refusals
from ivgr.core.settings import NonNegativeFloat, Share, checked
from ivgr.distributed.collectives import all_reduce_sum
from ivgr.trainer.low_bit import PREFIX, create_low_bit, find_class
from ivgr.trainer.master_weights import with_master_weights


@checked("model.update.optimizer.")
@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Settings of `timm.optim.create_optimizer_v2`."""

    name: str = "adamw"
    """Any name of `timm.optim.list_optimizers()`; or one of torchao.optim, such as "torchao.AdamW8bit"."""

    lr: NonNegativeFloat = 1e-6
    """Peak learning rate."""

    weight_decay: NonNegativeFloat = 1e-2
    """Weight decay; biases and norms have none."""

    master: bool = False
    """Keep fp32 copies of weights that are of lower precision, and step those."""

    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of that optimizer."""

    def __post_init__(self) -> None:
        if self.name.startswith(PREFIX):
            find_class(self.name)
        elif self.name not in list_optimizers():
            raise UserError(f"model.update.optimizer.name is {self.name!r}, and timm has no such optimizer")

    def create(self, model: nn.Module) -> torch.optim.Optimizer:
        """Creates the optimizer over the trained parameters of `model`."""
        with refusals("model.update.optimizer", "mend its options"):
            if self.name.startswith(PREFIX):
                optimizer = create_low_bit(self.name, model, self.lr, self.weight_decay, self.options)
            else:
                optimizer = create_optimizer_v2(
                    model, opt=self.name, lr=self.lr, weight_decay=self.weight_decay, **self.options
                )
        _step_without_temporaries(optimizer)
        return with_master_weights(optimizer) if self.master else optimizer


@checked("model.update.schedule.")
@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Settings of `timm.scheduler.create_scheduler_v2`, counted in optimizer updates."""

    name: Literal["constant", "cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt"] = "constant"
    """As timm names them; the power of "poly" is its option decay_rate."""

    warmup: Share = 0.02
    """Share of all updates over which the rate rises linearly from 0."""

    final: Share = 0.0
    """Learning rate after the last update, as a share of the peak; "constant", "step" and "multistep" do not
    go there."""

    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of that schedule."""

    def create(self, optimizer: torch.optim.Optimizer, updates: int) -> Scheduler:
        """Creates a schedule over `updates` updates; `step(n)` sets the rate of update n, counted from 0."""
        warmup = round(self.warmup * updates)
        # Steps of factor 1, since timm has had a "constant" of its own only from 1.0.31 on.
        constant = self.name == "constant"
        name = "step" if constant else self.name
        options: dict[str, Any] = {"decay_rate": 1.0} if constant else {}
        with refusals("model.update.schedule", "mend its options"):
            scheduler, _ = create_scheduler_v2(
                optimizer,
                sched=name,
                num_epochs=max(updates - warmup, 1),  # behind the warm-up
                warmup_epochs=warmup,
                warmup_lr=0.0,
                warmup_prefix=True,
                min_lr=self.final * optimizer.param_groups[0]["lr"],
                **self.options | options,
            )
        if scheduler is None:
            raise UserError(
                f"model.update.schedule.name is {self.name!r}, which timm {timm.__version__} does not have: "
                "pip install -U timm"
            )
        return scheduler


def _step_without_temporaries(optimizer: torch.optim.Optimizer) -> None:
    """Lets PyTorch's Adam step weights on a GPU by its fused kernel, unless the options say how: its default
    there holds temporaries as large as all weights. The switch is set for the step alone, so that checkpoints
    have it as the options do, wherever they were made."""
    if not isinstance(optimizer, torch.optim.Adam):  # or AdamW
        return
    fused: list[dict[str, Any]] = []

    def before_step(optimizer: torch.optim.Optimizer, *_) -> None:
        for group in optimizer.param_groups:
            decided = group["fused"] is not None or group["foreach"] is not None or group["differentiable"]
            if not decided and all(map(_on_gpu, group["params"])):
                group["fused"] = True
                fused.append(group)
                for weight in group["params"]:
                    if "step" in (state := optimizer.state.get(weight, {})):
                        state["step"] = state["step"].to(weight.device)

    def after_step(*_) -> None:
        for group in fused:
            group["fused"] = None
        fused.clear()

    optimizer.register_step_pre_hook(before_step)
    optimizer.register_step_post_hook(after_step)


def _on_gpu(weight: torch.Tensor) -> bool:
    return weight.is_cuda


def sum_gradients(parameters: list[nn.Parameter]) -> None:
    """Sums gradients over all ranks, in place. A rank without a gradient that another has (its mini-batch was
    empty, or had no images) adds nothing. All ranks must call it."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    holders = torch.tensor([float(p.grad is not None) for p in trained], device=trained[0].device)
    all_reduce_sum(holders)
    for parameter, count in zip(trained, holders.tolist(), strict=True):
        if count:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            all_reduce_sum(parameter.grad)
