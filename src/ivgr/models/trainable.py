"""The trained part of the policy, and the memory of its activations.

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
from ivgr.models.lora import AdapterConfig
from ivgr.models.registry import find_family

Part = Literal["vision", "embeddings"]


@dataclass(frozen=True, kw_only=True)
class TrainableConfig:
    """Which parameters are trained; UserError if the settings contradict each other."""

    adapter: AdapterConfig | None = None
    """Low-rank adapters to train instead of the weights; null trains the weights."""

    freeze: Sequence[Part] = ()
    """Parts that are not trained: "vision" (the tower with its merger), "embeddings" (with a tied head)."""

    gradient_checkpointing: bool = False
    """Keep only the layers' inputs for the backward pass: slower, smaller."""

    def __post_init__(self) -> None:
        if self.adapter is not None and self.adapter.on_vision and "vision" in self.freeze:
            raise UserError(
                "model.trainable.freeze holds vision, but model.trainable.adapter.targets adapts it; "
                "use targets language"
            )

    def apply(self, policy: PreTrainedModel) -> None:
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
    if part == "embeddings":
        return policy.get_input_embeddings()
    return find_family(policy.config.model_type).vision_tower(policy)
