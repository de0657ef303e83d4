"""Tensor parallelism (arXiv 1909.08053) for a copy of the policy that rolls out: a few ranks hold a part of
every decoder layer each, and compute it together.

In: a stock HF model, and the ranks that share a copy of it. Out: which part of each weight a rank holds, and
the same model, whose row-wise products are summed over those ranks. Queries, keys, values, gate and up are
split column-wise, so that each rank has some heads and some of the MLP's width; the products that lead back
to the hidden state, o and down, row-wise. Norms, embedding, head and vision tower are whole on each rank.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig, PreTrainedModel

from ivgr.core.errors import UserError
from ivgr.models.lora import is_adapted
from ivgr.models.registry import find_family

SETTING = "trainer.strategy.rollout_tensor_parallel"
# Of a decoder layer. A linear layer keeps its matrix transposed: the columns are the rows of `weight`.
COLUMN_WISE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
ROW_WISE = ("self_attn.o_proj", "mlp.down_proj")
TP_GROUP = "tensor_parallel_group"  # an attribute that a split model gets


def check_node(ranks: int, devices: int) -> None:
    """UserError unless the `devices` GPUs of a node hold whole copies over `ranks` each."""
    if devices % ranks:
        raise UserError(
            f"{SETTING} is {ranks}, which does not divide the {devices} GPUs of a node (trainer.devices): "
            f"set it to {math.gcd(ranks, devices)}"
        )


def check_parts(config: PreTrainedConfig, ranks: int) -> None:
    """UserError unless `ranks` divides the heads and the MLP of the model that `config` describes."""
    text: Any = config.get_text_config()
    counts = {
        "attention heads": text.num_attention_heads,
        "key/value heads": text.num_key_value_heads,
        "numbers of MLP width": text.intermediate_size,
    }
    for name, count in counts.items():
        if count % ranks:
            raise UserError(
                f"{SETTING} is {ranks}, which does not divide the policy's {count} {name}: set it to "
                f"{math.gcd(ranks, *counts.values())}"
            )


class WeightParts:
    """Which part of each of a model's weights this rank holds.

    Args:
        model: Whole, as it is trained. UserError if it cannot be split.
        tp_group: The ranks that hold a part each; None where this rank holds all.
    """

    def __init__(self, model: PreTrainedModel, tp_group: dist.ProcessGroup | None = None) -> None:
        self.tp_group = tp_group
        self.dims = [None] * len(list(model.parameters()))
        """Of each parameter the dimension that is split; None where it is whole."""
        if tp_group is not None:
            check_parts(model.config, dist.get_world_size(tp_group))
            split = _split_dims(model)
            self.dims = [split.get(id(weight)) for weight in model.parameters()]
        self.sums: list[RemovableHandle] = []

    def part(self, whole: torch.Tensor, dim: int | None) -> torch.Tensor:
        """This rank's part of a weight that is split along `dim`."""
        if self.tp_group is None or dim is None:
            return whole
        return whole.chunk(dist.get_world_size(self.tp_group), dim)[dist.get_rank(self.tp_group)]

    def join(self, model: PreTrainedModel) -> None:
        """Lets `model`, whose weights are parts, compute with the other ranks: its row-wise linear layers
        return the sum over all of them."""
        if self.tp_group is None:
            return
        setattr(model, TP_GROUP, self.tp_group)
        for layer in find_family(model.config.model_type).decoder_layers(model):
            for name in ROW_WISE:
                self.sums.append(layer.get_submodule(name).register_forward_hook(self._sum))

    def leave(self, model: PreTrainedModel) -> None:
        """Undoes `join`, since the weights of `model` become whole."""
        for handle in self.sums:
            handle.remove()
        self.sums.clear()
        setattr(model, TP_GROUP, None)

    def _sum(self, _: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        dist.all_reduce(output, group=self.tp_group)


def _split_dims(model: PreTrainedModel) -> dict[int, int]:
    """Returns the dimension that is split of each parameter that is, by id. UserError for low-rank adapters
    and for layers that are made otherwise."""
    if is_adapted(model):
        raise UserError(
            f"{SETTING} does not split low-rank adapters: set it to 1, or leave out model.trainable.adapter"
        )
    dims: dict[int, int] = {}
    for layer in find_family(model.config.model_type).decoder_layers(model):
        linears = dict(layer.named_modules())
        odd = [name for name in COLUMN_WISE + ROW_WISE if not isinstance(linears.get(name), nn.Linear)]
        odd += [name for name in ROW_WISE if getattr(linears.get(name), "bias", None) is not None]
        if odd:
            raise UserError(
                f"{SETTING} does not split this policy, whose decoder layers have another {odd[0]} than "
                "Qwen's: set it to 1"
            )
        dims |= {id(weight): 0 for name in COLUMN_WISE for weight in linears[name].parameters()}
        dims |= {id(linears[name].weight): 1 for name in ROW_WISE}
    return dims


def tp_group_of(model: nn.Module) -> dist.ProcessGroup | None:
    """The ranks that share this copy of the policy; None if this rank holds all of it."""
    return getattr(model, TP_GROUP, None)


def tp_ranks(model: nn.Module) -> int:
    """How many ranks share this copy of the policy."""
    tp_group = tp_group_of(model)
    return 1 if tp_group is None else dist.get_world_size(tp_group)


def least_of(tp_group: dist.ProcessGroup | None, value: int, device: torch.device) -> int:
    """The least of the values of all ranks of `tp_group`, which must all call it; `value` without one."""
    if tp_group is None:
        return value
    least = torch.tensor(value, device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN, tp_group)
    return int(least.item())


def as_first(tp_group: dist.ProcessGroup | None, found: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Tensors (n,) of whole numbers below 2⁵³ or of floats, as the first rank of `tp_group` has found them;
    all its ranks must call it. The same tensors without a group."""
    if tp_group is None:
        return found
    packed = torch.stack([one.double() for one in found])
    dist.broadcast(packed, group=tp_group, group_src=0)
    return tuple(row.to(one.dtype) for row, one in zip(packed, found, strict=True))
