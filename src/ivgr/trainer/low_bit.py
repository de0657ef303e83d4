"""torchao's optimizers, whose states take 8 or 4 bits per number and which can round bf16 weights
stochastically. In: a name, a model. Out: an optimizer like any other."""

from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.optim import Optimizer

from ivgr.core.errors import UserError, missing_package
from ivgr.core.seeding import derive_seed, run_seed

PREFIX = "torchao."


def find_class(name: str) -> type[Optimizer]:
    """Returns the class of a name such as "torchao.AdamW8bit". It is looked up when a configuration is read,
    because a checkpoint with its states can be read weights-only only after that."""
    try:
        found = getattr(import_module("torchao.optim"), name.removeprefix(PREFIX), None)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("torchao"):
            raise
        raise missing_package(f"model.update.optimizer.name {name}", "torchao", "lowbit") from error
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise UserError(f"model.update.optimizer.name is {name!r}, but torchao.optim has no such optimizer")
    return found


def create_low_bit(
    name: str, model: nn.Module, lr: float, weight_decay: float, options: dict[str, Any]
) -> Optimizer:
    """Creates the optimizer over the trained parameters of `model`; biases and norms have no weight decay.
    Its step needs the learning rate as a tensor, schedules and readers need a number: each gets its
    own."""
    make: Callable[..., Optimizer] = find_class(name)
    optimizer = make(param_groups_weight_decay(model, weight_decay), lr=lr, **options)  # pyright: ignore[reportCallIssue]

    def enter_rates(optimizer: Optimizer, *_) -> None:
        for group in optimizer.param_groups:
            group["lr"] = torch.as_tensor(group["lr"])

    def leave_rates(optimizer: Optimizer, *_) -> None:
        for group in optimizer.param_groups:
            group["lr"] = float(group["lr"])

    optimizer.register_step_pre_hook(enter_rates)
    optimizer.register_step_post_hook(leave_rates)
    optimizer.register_load_state_dict_post_hook(leave_rates)
    leave_rates(optimizer)
    seed_rounding(optimizer)
    return optimizer


def seed_rounding(optimizer: Optimizer) -> None:
    """Makes stochastic rounding depend on the run's seed and the step number only: it is the same on all
    ranks and after a resume, and no other random stream changes."""
    forks = ExitStack()

    def before_step(optimizer: Optimizer, *_) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        devices = {weight.device for weight in weights if weight.is_cuda}
        forks.enter_context(torch.random.fork_rng(devices))
        steps = [int(state["step"]) for state in optimizer.state.values() if "step" in state]
        torch.manual_seed(derive_seed(run_seed(), "rounding", max(steps, default=0)))

    optimizer.register_step_pre_hook(before_step)
    optimizer.register_step_post_hook(lambda *_: forks.close())
