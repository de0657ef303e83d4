"""torchao's optimizers, whose states take 8 or 4 bits a number and which can round bf16 weights
stochastically. In: a name, a model. Out: an optimizer like any other."""

from importlib import import_module
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.optim import Optimizer

from ivgr.errors import UserError

PREFIX = "torchao."


def find_class(name: str) -> type[Optimizer]:
    """The class behind "torchao.AdamW8bit" and the like; looked up when a configuration is read,
    since only then can a checkpoint with its states be read weights-only."""
    try:
        found = getattr(import_module("torchao.optim"), name.removeprefix(PREFIX), None)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("torchao"):
            raise
        raise UserError(f"model.optimizer.name {name} needs torchao: pip install 'ivgr[lowbit]'") from error
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise UserError(f"model.optimizer.name is {name!r}, but torchao.optim has no such optimizer")
    return found


def create_low_bit(
    name: str, model: nn.Module, lr: float, weight_decay: float, options: dict[str, Any]
) -> Optimizer:
    """Over the trained parameters of `model`; biases and norms have no weight decay. Its step
    wants the learning rate as a tensor, schedules and readers want a number: each gets it."""
    optimizer = find_class(name)(param_groups_weight_decay(model, weight_decay), lr=lr, **options)

    def before_step(optimizer: Optimizer, *_) -> None:
        for group in optimizer.param_groups:
            group["lr"] = torch.as_tensor(group["lr"])

    def after_step(optimizer: Optimizer, *_) -> None:
        for group in optimizer.param_groups:
            group["lr"] = float(group["lr"])

    optimizer.register_step_pre_hook(before_step)
    optimizer.register_step_post_hook(after_step)
    optimizer.register_load_state_dict_post_hook(after_step)
    after_step(optimizer)
    return optimizer
