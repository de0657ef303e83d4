"""Master weights: an optimizer that steps fp32 copies of weights kept in lower precision.

In: any optimizer over bf16 (or fp16) parameters. Out: the same object. Between steps the
parameters are the rounded copies; the optimizer's state holds the fp32 copies as "master",
and so do its checkpoints.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.optim import Optimizer

from ivgr.core.errors import UserError
from ivgr.core.sharding import is_sharded

KEY = "master"


def with_master_weights(optimizer: Optimizer) -> Optimizer:
    """Gives `optimizer` fp32 parameters and gradients while it steps, and fp32 parameters while it loads its
    state, which is cast to their dtype. A step consumes the gradients. UserError if the parameters are
    sharded."""
    if any(is_sharded(parameter) for parameter in _low_precision(optimizer)):
        raise UserError(
            "model.update.optimizer.master keeps copies of whole weights; with trainer.strategy fsdp2 load "
            "model.policy in float32 and set the strategy's param_dtype to bfloat16, which is the same"
        )
    low: dict[nn.Parameter, torch.Tensor] = {}

    def before_step(optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Swaps in the fp32 copies; a closure still computes in the lower precision."""
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for parameter in _low_precision(optimizer):
            if parameter.grad is not None:
                low[parameter], gradient = parameter.data, parameter.grad.float()
                parameter.grad = None
                master = optimizer.state[parameter].pop(KEY, None)
                parameter.data = parameter.data.float() if master is None else master
                parameter.grad = gradient
        return (optimizer,), {} if closure is None else {"closure": lambda: loss}

    def after_step(optimizer: Optimizer, *_) -> None:
        for parameter, rounded in low.items():
            optimizer.state[parameter][KEY] = parameter.data
            parameter.grad = None
            parameter.data = rounded.copy_(parameter.data)
        low.clear()

    def before_load(optimizer: Optimizer, _: dict) -> None:
        for parameter in _low_precision(optimizer):
            low[parameter], parameter.grad = parameter.data, None
            parameter.data = parameter.data.float()

    def after_load(optimizer: Optimizer) -> None:
        for parameter, rounded in low.items():
            parameter.data = rounded
        low.clear()

    optimizer.register_step_pre_hook(before_step)
    optimizer.register_step_post_hook(after_step)
    optimizer.register_load_state_dict_pre_hook(before_load)
    optimizer.register_load_state_dict_post_hook(after_load)
    return optimizer


def _low_precision(optimizer: Optimizer) -> Iterator[nn.Parameter]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.dtype in (torch.bfloat16, torch.float16):
                yield parameter
