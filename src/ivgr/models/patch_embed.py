"""Faster patch embedding for inference: a convolution whose kernel is the whole patch is one matrix
product, and PyTorch does the product faster."""

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from ivgr.models.registry import find_family


class LinearPatches(nn.Module):
    """Computes what `convolution` does, with its own parameters under the same names."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.weight = convolution.weight
        self.bias = convolution.bias

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches (N, C, T, P, P) → their embeddings (N, E, 1, 1, 1)."""
        embedded = functional.linear(patches.flatten(1), self.weight.flatten(1), self.bias)
        return embedded[:, :, None, None, None]


def use_linear_patches(model: PreTrainedModel) -> None:
    """Replaces the vision tower's patch convolution, where it has one without overlap."""
    embed = getattr(find_family(model.config.model_type).vision_tower(model), "patch_embed", None)
    convolution = getattr(embed, "proj", None)
    if (
        embed is not None
        and isinstance(convolution, nn.Conv3d)
        and convolution.stride == convolution.kernel_size
    ):
        embed.proj = LinearPatches(convolution)
