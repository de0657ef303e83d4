"""The policy's weights, in memory, into the model inside a vLLM engine.

In: the HF policy, and vLLM's module of the same architecture. vLLM's own `load_weights` knows
how HF names map to its names and which of them it fuses; what it returns tells whether every
weight found its place, which vLLM itself does not insist on.
"""

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ivgr.core.errors import UserError, say
from ivgr.models.lora import merged_weights

# vLLM rounds the vocabulary up to whole blocks of rows.
PADDED = ("embed_tokens.weight", "lm_head.weight")
# How vLLM says that it has no place for a name, or another shape there.
REFUSALS = (ValueError, KeyError, AssertionError, AttributeError, RuntimeError)
# Which are RuntimeErrors, too, but not of the weight.
DEVICE_ERRORS = (torch.OutOfMemoryError, torch.AcceleratorError)


@torch.no_grad()
def load_weights(policy: PreTrainedModel, model: Any) -> None:
    """Copies every parameter of `policy` into vLLM's `model`, low-rank adapters added to what they
    adapt; UserError that names the first which it does not take."""
    name = "the first"

    def note(named: tuple[str, torch.Tensor]) -> tuple[str, torch.Tensor]:
        nonlocal name
        name = named[0]
        return named

    try:
        model.load_weights(map(note, merged_weights(policy)))
    except DEVICE_ERRORS:
        raise
    except REFUSALS as error:
        raise UserError(
            f"model.engine: vLLM's {type(model).__name__} does not take the policy's weight {name} "
            f"({say(error)}); model.engine.checkpoint must be what model.policy was loaded from"
        ) from error


@torch.no_grad()
def load_weights_checked(policy: PreTrainedModel, model: nn.Module) -> None:
    """Loads as `load_weights` does, but one by one: UserError unless each parameter of `policy` has a place
    in `model` and each parameter of `model` is filled exactly once."""
    filled = {name: [] for name, _ in model.named_parameters()}
    homeless = []
    for name, weight in merged_weights(policy):
        places = _place(model, name, weight)
        if not places:
            homeless.append(name)
        for place in places:
            filled.setdefault(place, []).append(weight.numel())
    odd = [name for name, own in model.named_parameters() if not _fits(name, own, filled[name])]
    if homeless or odd:
        raise UserError(
            f"model.engine: vLLM's {type(model).__name__} and the policy do not fit: "
            f"{_count(homeless, 'weights of the policy have no place')}; "
            f"{_count(odd, 'of vLLM are not filled exactly once')}; "
            "model.engine.checkpoint must be what model.policy was loaded from"
        )


def _place(model: Any, name: str, weight: torch.Tensor) -> Iterable[str]:
    """vLLM's names of the parameters that took `weight`; none if it has no place or shape for it."""
    try:
        return model.load_weights([(name, weight)])
    except DEVICE_ERRORS:
        raise
    except REFUSALS:
        return ()


def _fits(name: str, own: torch.Tensor, filled: list[int]) -> bool:
    """Whether weights of `filled` elements make up `own`, rows that pad the vocabulary aside."""
    if name.endswith(PADDED):
        return len(filled) == 1 and filled[0] <= own.numel()
    return sum(filled) == own.numel()


def _count(names: list[str], what: str) -> str:
    shown = ", ".join(chain(names[:3], ["…"] if len(names) > 3 else []))
    return f"{len(names)} {what}" + (f": {shown}" if names else "")
