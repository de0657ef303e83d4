"""The frozen reference of the KL penalty: a separate model, or the policy without its adapters.

In: the policy. Out: a `Reference`, which lends a model for forward passes."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, Protocol

import torch
from transformers import PreTrainedModel

from ivgr.core.errors import UserError
from ivgr.distributed.fsdp import reshard_after
from ivgr.models.attention import set_attention
from ivgr.models.lora import adapters_off, is_adapted
from ivgr.models.model_directory import read_config, read_model
from ivgr.models.pretrained import TINY
from ivgr.models.stored_weights import StoredWeights, read_skeleton

SETTING = "model.reference.path"


class Reference(Protocol):
    """The policy as it was before training, or another; never trained, never saved."""

    def inference_model(self) -> AbstractContextManager[PreTrainedModel]:
        """Lends the reference, on the policy's device, for passes without gradient; the policy may not run in
        the body. Gathered shards are freed at its end."""
        ...

    def shard(self, split: Callable[[PreTrainedModel], None]) -> None:
        """Shards, by `split`, the weights that are not the policy's; UserError if they cannot be sharded."""

    def fill(self, device: torch.device) -> None:
        """Reads those of the weights that are not the policy's and are still to be read, onto `device`."""


class FrozenReference:
    """Makes the reference.

    Args:
        path: Directory or hub id; null takes the policy as first loaded: a copy, or with
            model.trainable.adapter the policy itself, its adapters switched off.
        device: "policy" keeps it beside the policy; "cpu" keeps it in main memory and brings it
            over once per scoring phase (with exact KL once per micro-batch).
    """

    def __init__(self, path: str | None = None, device: Literal["policy", "cpu"] = "policy") -> None:
        self.path = path
        self.device = device

    def load(self, policy: PreTrainedModel, weights: StoredWeights | None = None) -> Reference:
        """Returns the reference of a policy that is in its training form. If `weights` are still to be read
        into the policy, the reference's are too: see `Reference.fill`."""
        if self.path is None and is_adapted(policy):
            if self.device == "cpu":
                raise UserError(
                    "model.reference.device is cpu, but with model.trainable.adapter the reference is the "
                    "policy itself and takes no memory; leave it out"
                )
            return UnadaptedPolicy(policy)
        if self.path is None:
            model = copy.deepcopy(policy)
        else:
            model, weights = self._read(policy, whole=weights is None)
        return OwnModel(model.eval().requires_grad_(False), policy, self.device == "cpu", weights)

    def _read(self, policy: PreTrainedModel, whole: bool) -> tuple[PreTrainedModel, StoredWeights | None]:
        """Reads the reference, or if not `whole` its skeleton; UserError unless it has the model type and
        vocabulary size of `policy`."""
        assert self.path is not None, "null takes a copy of the policy"
        folder = TINY if self.path == "tiny" else self.path
        config = read_config(folder, SETTING)
        of_both = [(c.model_type, c.get_text_config().vocab_size) for c in (policy.config, config)]
        if of_both[0] != of_both[1]:
            (own, words), (other, others) = of_both
            raise UserError(
                f"{SETTING}: {self.path!r} is a {other} of {others} words, the policy a {own} of {words}; "
                "they must be alike"
            )
        model, weights = (
            (read_model(folder, config, policy.dtype, "sdpa", SETTING), None)
            if whole
            else read_skeleton(folder, config, policy.dtype, "sdpa", SETTING)
        )
        set_attention(model)
        return model, weights


class UnadaptedPolicy:
    """The policy with its adapters off: no further memory, and exactly the base model."""

    def __init__(self, policy: PreTrainedModel) -> None:
        self.policy = policy

    @contextmanager
    def inference_model(self) -> Iterator[PreTrainedModel]:
        with adapters_off(self.policy), reshard_after(self.policy):
            yield self.policy

    def shard(self, split: Callable[[PreTrainedModel], None]) -> None:
        """Does nothing: it has no weights of its own."""

    def fill(self, device: torch.device) -> None:
        """Does nothing, either."""


class OwnModel:
    """A model with weights of its own; with `offload` they stay on the CPU. `weights` are those that are
    still to be read."""

    def __init__(
        self,
        model: PreTrainedModel,
        policy: PreTrainedModel,
        offload: bool = False,
        weights: StoredWeights | None = None,
    ) -> None:
        self.model = model
        self.policy = policy
        self.offload = offload
        self.weights = weights

    def inference_model(self) -> AbstractContextManager[PreTrainedModel]:
        if self.offload:
            return on_device(self.model, self.policy.device)
        if self.model.device != self.policy.device:
            self.model.to(self.policy.device)  # pyright: ignore[reportArgumentType]  transformers wraps it
        return reshard_after(self.model)

    def shard(self, split: Callable[[PreTrainedModel], None]) -> None:
        if self.offload:
            raise UserError(
                "model.reference.device is cpu, but trainer.strategy fsdp2 splits the reference over the "
                "devices; leave it out"
            )
        split(self.model)

    def fill(self, device: torch.device) -> None:
        if self.weights is not None:
            self.weights.fill(self.model, torch.device("cpu") if self.offload else device)


@contextmanager
def on_device(model: PreTrainedModel, device: torch.device) -> Iterator[PreTrainedModel]:
    """In the body, the model uses copies of its weights on `device`; the originals never move."""
    home: list[tuple[dict[str, Any], str, torch.Tensor]] = [
        (tensors, name, tensor)
        for module in model.modules()
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
        if tensor is not None
    ]
    copies = {id(tensor): tensor.to(device) for *_, tensor in home}
    for tensors, name, tensor in home:
        tensors[name] = copies[id(tensor)]
    try:
        yield model
    finally:
        for tensors, name, tensor in home:
            tensors[name] = tensor
