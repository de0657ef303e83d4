"""Everything that ivgr knows about a model family; it asks the stock HF model for the rest.

In: the numbers of one family file. Out: configurations of its shipped sizes, its frame, its
processor around a tokenizer, rotary positions, and where its vision tower is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2VLImageProcessor,
)

from ivgr.core.errors import UserError
from ivgr.core.frame import Frame
from ivgr.models.family_fields import INTERLEAVED
from ivgr.models.vision_grid import GridInputs


@dataclass(frozen=True)
class Family:
    """One family of vision-language models.

    name: `config.model_type`. frame: of an image resized to (width, height) pixels. patch,
    merge: sides of a vision patch in pixels, and of an image token in patches. sizes: fields of
    the HF configuration of each shipped size, of which "tiny" is ours. hub: its hub id, with
    {size}. pixels: fewest and most of an image, as shipped. normal: mean and standard deviation
    of a colour channel. vision, blocks, language, layers: module paths in the HF model.
    grid_inputs: what the tower's pass takes in place of reading it off the sizes of its images; None
    leaves that and the tower's attention to transformers.
    """

    name: str
    frame: Callable[[tuple[int, int]], Frame]
    patch: int
    sizes: dict[str, dict[str, Any]]
    hub: str
    pixels: tuple[int, int]
    normal: tuple[Sequence[float], Sequence[float]]
    processor: type[ProcessorMixin]
    video_processor: type
    image_processor: type = Qwen2VLImageProcessor
    merge: int = 2
    vision: str = "model.visual"
    blocks: str = "model.visual.blocks"
    language: str = "model.language_model"
    layers: str = "model.language_model.layers"
    grid_inputs: GridInputs | None = None

    def hub_id(self, size: str) -> str:
        """Returns the hub id of a size, such as Qwen/Qwen2-VL-7B-Instruct for "7b"."""
        return self.hub.format(size=size.upper())

    def fields(self, size: str) -> dict[str, Any]:
        """Fields of the HF configuration of a shipped size; UserError lists those there are."""
        if size not in self.sizes:
            raise UserError(f"{self.name} has no size {size!r}; known are {', '.join(self.sizes)}")
        return self.sizes[size]

    def config(self, size: str, **changes: Any) -> PreTrainedConfig:
        """The HF configuration of a shipped size, with other fields replaced."""
        return CONFIG_MAPPING[self.name](**self.fields(size) | changes)

    def build_processor(
        self, tokenizer: PreTrainedTokenizerBase, chat_template: str, pixels: tuple[int, int] | None = None
    ) -> ProcessorMixin:
        """The family's own HF processor around `tokenizer`; images have from pixels[0] to
        pixels[1] pixels, by default as shipped."""
        fewest, most = pixels or self.pixels
        mean, deviation = map(list, self.normal)
        shared = {
            "size": {"shortest_edge": fewest, "longest_edge": most},
            "patch_size": self.patch,
            "merge_size": self.merge,
            "image_mean": mean,
            "image_std": deviation,
        }
        return self.processor(
            image_processor=self.image_processor(**shared),
            tokenizer=tokenizer,
            video_processor=self.video_processor(**shared),
            chat_template=chat_template,
        )

    @property
    def interleaved(self) -> bool:
        """Whether the rotary frequencies of time, rows and columns are interleaved."""
        return all(size["text_config"]["rope_parameters"].get(INTERLEAVED) for size in self.sizes.values())

    def vision_tower(self, model: PreTrainedModel) -> nn.Module:
        return model.get_submodule(self.vision)

    def vision_blocks(self, model: PreTrainedModel) -> nn.ModuleList:
        return cast(nn.ModuleList, model.get_submodule(self.blocks))

    def language_model(self, model: PreTrainedModel) -> nn.Module:
        return model.get_submodule(self.language)

    def decoder_layers(self, model: PreTrainedModel) -> nn.ModuleList:
        return cast(nn.ModuleList, model.get_submodule(self.layers))

    def positions(self, model: PreTrainedModel, ids: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """Rotary positions (3, P) of a prompt ids (P,) with images of `grid` (images, 3)."""
        kinds = (ids == model.config.image_token_id).int()[None]
        positions, _ = model.model.get_rope_index(ids[None], mm_token_type_ids=kinds, image_grid_thw=grid)
        return positions[:, 0]
