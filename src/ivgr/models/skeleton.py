"""A model without its weights: every shape, on PyTorch's meta device, and buffers with their numbers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel


def build_skeleton(
    config: PreTrainedConfig, dtype: torch.dtype | None = None, attn_implementation: str = "sdpa"
) -> PreTrainedModel:
    """The model of `config` on the meta device: every shape, no weight."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            config, dtype=dtype, attn_implementation=attn_implementation
        )
    model.tie_weights()
    return model


def compute_buffers(model: PreTrainedModel) -> None:
    """Gives the buffers of a skeleton that no checkpoint holds, such as rotary frequencies, the numbers that
    transformers gives them when it loads a model; those that a checkpoint holds become empty tensors of the
    host."""
    stored = model.state_dict(keep_vars=True)
    for name, buffer in list(model.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, torch.empty_like(buffer, device="cpu"))
    for tensor in stored.values():
        tensor._is_hf_initialized = True  # what has this mark, transformers does not initialize
    model.initialize_weights()


def is_skeleton(model: nn.Module) -> bool:
    """Whether weights of `model` are on the meta device."""
    return any(weight.is_meta for weight in model.parameters())


def replace_parameters(model: nn.Module, by_id: dict[int, nn.Parameter]) -> None:
    """Puts new parameters in the place of those of these ids; tied ones stay tied."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(weight) in by_id:
                setattr(module, name, by_id[id(weight)])


@contextmanager
def placeholders_on_host(model: nn.Module) -> Iterator[None]:
    """In the body, weights on the meta device look as if they were on the host, where each takes a single
    number's memory; what the body does to their `requires_grad` stays."""
    empty = [weight for weight in model.parameters() if weight.is_meta]
    stand_ins = [
        nn.Parameter(torch.empty((), dtype=weight.dtype).expand(weight.shape), weight.requires_grad)
        for weight in empty
    ]
    replace_parameters(model, dict(zip(map(id, empty), stand_ins, strict=True)))
    try:
        yield
    finally:
        for weight, stand_in in zip(empty, stand_ins, strict=True):
            weight.requires_grad_(stand_in.requires_grad)
        replace_parameters(model, dict(zip(map(id, stand_ins), empty, strict=True)))
