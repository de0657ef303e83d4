"""A model's weights split over ranks by FSDP2, layer by layer.

In: a stock HF model. Out: the same, whose weights are gathered for a layer's pass and let go
after it; and a `Replica`, which holds all of them while it rolls out, or with a few ranks a part each.
"""

import copy
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from transformers import PreTrainedModel

from ivgr.core.sharding import is_sharded
from ivgr.distributed.tensor_parallel import WeightParts
from ivgr.models.registry import find_family
from ivgr.models.skeleton import replace_parameters

Result = TypeVar("Result")
RUN_PASS = "run_pass"  # a method that a sharded model gets


def shard(model: PreTrainedModel, mesh: DeviceMesh, precision: MixedPrecisionPolicy) -> None:
    """Splits every decoder layer, every vision block, the rest of the vision tower and the rest of
    the model, each a group of its own. Gradients are summed over ranks."""
    family = find_family(model.config.model_type)
    vision, blocks = family.vision_tower(model), family.vision_blocks(model)
    for part in (*blocks, vision, *family.decoder_layers(model), model):
        fully_shard(part, mesh=mesh, mp_policy=precision)
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
    setattr(model, RUN_PASS, types.MethodType(lambda self, call: call(), model))
    register_fsdp_forward_method(model, RUN_PASS)


def run_pass(model: PreTrainedModel, call: Callable[[], Result]) -> Result:
    """`call()`, a pass through `model` with whatever else reads its weights, such as the head's.
    If they are split, all ranks must make the same passes, in the same order."""
    return getattr(model, RUN_PASS)(call) if is_sharded(model) else call()


@contextmanager
def reshard_after(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Lends `model` for passes without gradients, and frees what they leave gathered of it if it is
    split."""
    try:
        yield model
    finally:
        if isinstance(model, FSDPModule):
            model.reshard()


def clone_if_sharded(model: PreTrainedModel, weight: torch.Tensor) -> torch.Tensor:
    """A gathered weight of `model`, to be read after it was let go: of a split model a copy."""
    return weight.detach().clone() if is_sharded(model) else weight.detach()


class Replica:
    """A copy of a policy that is split: filled once, then used until `invalidate`.

    While it is empty its weights have no storage (they are on PyTorch's meta device), wherever the
    policy lies when it is split and wherever it moves.

    Args:
        policy: The policy, not split yet.
        dtype: Of the copy's weights; null for the policy's own.
        tp_group: The ranks that share one copy, each with a part of every decoder layer; null where each
            rank has a whole one. UserError if the policy cannot be shared so.
    """

    def __init__(
        self, policy: PreTrainedModel, dtype: torch.dtype | None, tp_group: dist.ProcessGroup | None = None
    ) -> None:
        self.policy = policy
        self.parts = WeightParts(policy, tp_group)
        empty = {}
        for weight, dim in zip(policy.parameters(), self.parts.dims, strict=True):
            part = self.parts.part(torch.empty_like(weight, dtype=dtype, device="meta"), dim)
            empty[id(weight)] = nn.Parameter(part, requires_grad=False)
        self.model = copy.deepcopy(policy, empty)
        self.parts.join(self.model)
        self.filled = False

    @torch.no_grad()
    def sync(self) -> PreTrainedModel:
        """The copy with the policy's weights, on its device; all ranks must call it. Of a weight that is
        gathered for it, a rank keeps its part alone."""
        if not self.filled:
            weights = zip(self.model.parameters(), self.policy.parameters(), self.parts.dims, strict=True)
            self._take(
                torch.empty_like(own, device=split.device).copy_(self.parts.part(split.full_tensor(), dim))
                for own, split, dim in weights
            )
            self.model.to(self.policy.device)  # pyright: ignore[reportArgumentType]  transformers wraps it
            self.filled = True
        return self.model

    @torch.no_grad()
    def gather_to_cpu(self, keep: bool) -> PreTrainedModel:
        """The whole copy in main memory, as exact as the policy, where `keep`; all ranks must call it.
        It is the copy's last use."""
        self.parts.leave(self.model)
        wholes = (split.full_tensor() for split in self.policy.parameters())
        self._take(whole.cpu() if keep else whole.new_empty(0) for whole in wholes)
        return self.model.to("cpu")  # pyright: ignore[reportArgumentType]  transformers wraps it

    def invalidate(self) -> None:
        """Frees the copy, because the policy is about to change."""
        if self.filled:
            self._take(torch.empty_like(weight, device="meta") for weight in self.model.parameters())
            self.filled = False

    def _take(self, tensors: Iterable[torch.Tensor]) -> None:
        """Puts `tensors` in the place of the copy's weights, in order."""
        pairs = zip(self.model.parameters(), tensors, strict=True)
        replace_parameters(
            self.model, {id(weight): nn.Parameter(tensor, requires_grad=False) for weight, tensor in pairs}
        )
