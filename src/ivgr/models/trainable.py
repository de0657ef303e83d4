"""What of the policy is trained, and what its activations may cost.

In: a policy as loaded, in eval mode. Out: the same, with adapters, frozen parts and
checkpointed layers as asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ivgr.core.errors import UserError
from ivgr.models.lora import Adapter

Part = Literal["vision", "embeddings"]


@dataclass(frozen=True)
class TrainingForm:
    """The form of a run's training; UserError where the parts contradict each other.

    adapter: adapters instead of the weights; freeze: parts that are not trained, "vision"
    being the tower with its merger, "embeddings" the token embeddings with a head that is
    tied to them; gradient_checkpointing: see `checkpoint_layers`.
    """

    adapter: Adapter | None = None
    freeze: Sequence[Part] = ()
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.adapter is not None and self.adapter.on_vision and "vision" in self.freeze:
            raise UserError(
                "model.freeze holds vision, but model.adapter.targets adapts it; use targets language"
            )

    def shape(self, policy: PreTrainedModel) -> None:
        """Changes `policy` in place; which parameters are trained their `requires_grad` says. A
        frozen tower's pass then builds no graph, since nothing in it needs a gradient."""
        if self.adapter is not None:
            self.adapter.inject(policy)
        for part in self.freeze:
            _find(policy, part).requires_grad_(False)
        if self.gradient_checkpointing:
            checkpoint_layers(policy)


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Keeps only the layers' inputs for the backward pass, which computes the rest again.

    transformers does so in layers that are in training mode; so those alone are, and not what
    they hold: no dropout wakes, and all numbers are those of the model in eval mode. It also
    makes every embedding's output need a gradient, which the reentrant kind wants and which
    would have a frozen tower build its graph: undone.
    """
    model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    model.disable_input_require_grads()
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.training = True


def _find(policy: PreTrainedModel, part: Part) -> nn.Module:
    return policy.model.visual if part == "vision" else policy.get_input_embeddings()
