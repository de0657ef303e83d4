"""Low-rank adapters (LoRA, arXiv 2106.09685) on the policy's linear layers, made by peft.

In: a HF model. Out: the same object, whose layers were wrapped in place, so that every call
into it stays what it was. The head is left plain: its weight enters the kernels directly.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from ivgr.core.errors import missing_package
from ivgr.core.seeding import derive_seed, run_seed
from ivgr.core.settings import PositiveFloat, PositiveInt, checked
from ivgr.models.registry import find_family
from ivgr.models.skeleton import placeholders_on_host

Targets = Literal["language", "language+vision"]


@checked("model.trainable.adapter.")
@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Trains low-rank adapters instead of the weights. There is no dropout: the policy that is
    updated is the one that rolled out."""

    rank: PositiveInt = 16
    """Rank of each adapter."""

    alpha: PositiveFloat = 32.0
    """An adapter's output is scaled by alpha / rank."""

    targets: Targets = "language"
    """"language" wraps the linear layers of the language model, "language+vision" those of the vision tower
    and its merger too."""

    @property
    def on_vision(self) -> bool:
        return self.targets == "language+vision"

    def inject(self, model: PreTrainedModel) -> None:
        """Wraps `model` in place; nothing else of it is trained any more. The adapters start
        from the run's seed and as no change at all; they are fp32 whatever the weights are."""
        peft = _import("peft")
        family = find_family(model.config.model_type)
        towers = [family.language, family.vision] if self.on_vision else [family.language]
        names = [
            f"{tower}.{name}"
            for tower in towers
            for name, layer in model.get_submodule(tower).named_modules()
            if isinstance(layer, nn.Linear)
        ]
        config = peft.LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=names)
        # peft draws adapters on the host and then moves them to where the weights are.
        with torch.random.fork_rng(), placeholders_on_host(model):
            torch.manual_seed(derive_seed(run_seed(), "adapter"))
            peft.inject_adapter_in_model(config, model)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()


def is_adapted(model: PreTrainedModel) -> bool:
    return getattr(model, "peft_config", None) is not None


@contextmanager
def adapters_off(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """In the body, the model is exactly what it was before its adapters. Trained parameters stay marked as
    such: sharded weights keep the mark of their first pass."""
    layers = [layer for _, layer in _wrapped(model)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    try:
        yield model
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merge_adapters(model: PreTrainedModel) -> None:
    """Adds every adapter into the weights it adapts and takes the wrapping off."""
    for name, layer in _wrapped(model):
        base = layer.get_base_layer()
        base.weight.data = _merge(layer)
        model.set_submodule(name, base)
    del model.peft_config


def merged_weights(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter by the name and with the value that `merge_adapters` would give it, one at a
    time; the model stays as it is, with its adapters or without."""
    layers = dict(_wrapped(model)) if is_adapted(model) else {}
    for name, parameter in model.named_parameters():
        owner, _, own = name.partition(".base_layer.")
        if owner in layers:
            yield f"{owner}.{own}", _merge(layers[owner]) if own == "weight" else parameter.detach()
        elif not (layers and ".lora_" in name):
            yield name, parameter.detach()


class JoinedLinears:
    """Adapted layers that have one input, and their adapters as two products for all of them: every A side by
    side, every scaled B on the diagonal of a matrix, whose first rows add the biases. Rounded to the dtype of
    the weights, as they are when this is made."""

    ONES = 8  # columns of ones before the inner activations, for the biases; so many keep a row aligned

    @torch.no_grad()
    def __init__(self, layers: Sequence[Any]) -> None:
        self.linears: list[nn.Linear] = [layer.get_base_layer() for layer in layers]
        self.widths = [linear.out_features for linear in self.linears]
        dtype = self.linears[0].weight.dtype
        names = [layer.active_adapters[0] for layer in layers]
        pairs = list(zip(layers, names, strict=True))
        self.down = torch.cat([layer.lora_A[name].weight for layer, name in pairs]).to(dtype).T.contiguous()
        self.up = self.down.new_zeros(self.ONES + self.down.shape[1], sum(self.widths))
        row, column = self.ONES, 0
        for (layer, name), linear, width in zip(pairs, self.linears, self.widths, strict=True):
            factor = layer.lora_B[name].weight.T * layer.scaling[name]
            self.up[row : row + len(factor), column : column + width] = factor
            if linear.bias is not None:
                self.up[0, column : column + width] = linear.bias
            row, column = row + len(factor), column + width

    @property
    def inner_width(self) -> int:
        return len(self.up)

    def __call__(self, rows: torch.Tensor, inner: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs (R, ·) of all layers for rows (R, in), views of one tensor; inner (R, inner_width at
        least) begins with ONES ones, and what follows them is overwritten."""
        out = rows.new_empty(len(rows), sum(self.widths))
        parts = out.split(self.widths, 1)
        for linear, part in zip(self.linears, parts, strict=True):
            torch.mm(rows, linear.weight.T, out=part)
        inner = inner[:, : self.inner_width]
        torch.mm(rows, self.down, out=inner[:, self.ONES :])
        out.addmm_(inner, self.up)
        return parts


def join_adapted(layers: Sequence[Any]) -> JoinedLinears | None:
    """The layers joined; None unless all of them have an adapter."""
    adapted = all(hasattr(layer, "lora_A") and layer.active_adapters for layer in layers)
    return JoinedLinears(layers) if adapted else None


@torch.no_grad()
def _merge(layer: Any) -> torch.Tensor:
    """The adapted weight with its adapters added, rounded once, from double precision."""
    weight = layer.get_base_layer().weight
    merged = weight.to(torch.float64, copy=True)
    for name in layer.active_adapters:
        merged += (
            layer.lora_B[name].weight.double() @ layer.lora_A[name].weight.double() * layer.scaling[name]
        )
    return merged.to(weight.dtype)


def _wrapped(model: PreTrainedModel) -> list[tuple[str, Any]]:
    kind = _import("peft.tuners.tuners_utils").BaseTunerLayer
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, kind)]


def _import(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise missing_package("model.trainable.adapter", "peft", "lora") from error
