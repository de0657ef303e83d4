"""Models without weights: what stands in for reading a model directory.

In: a path or hub id as `model.policy` has it. Out: its configuration, the family's own processor around the
tiny world's tokenizer, and the model's every shape, whose weights are then made where they would be read to.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, ProcessorMixin

from ivgr.core.errors import UserError
from ivgr.models import pretrained, stored_weights
from ivgr.models.registry import find_family
from ivgr.models.skeleton import build_skeleton, compute_buffers
from ivgr.models.stored_weights import StoredWeights
from ivgr.tools.plan.model_shape import find_config
from ivgr.toy.tokenizer import CHAT_TEMPLATE, build_tokenizer, special_ids
from ivgr.trainer import reference


def skeleton_readers(layers: int | None) -> list[tuple[Any, str, Any]]:
    """The functions that stand in: module, name, function. `layers` cuts the models."""
    configure = partial(describe_model, layers=layers)
    return [
        (pretrained, "read_config", configure),
        (pretrained, "read_processor", make_processor),
        (pretrained, "read_skeleton", make_skeleton),
        (reference, "read_config", configure),
        (reference, "read_skeleton", make_skeleton),
        (stored_weights, "_copy", leave_empty),
    ]


def describe_model(path: Any, *_: Any, layers: int | None) -> PreTrainedConfig:
    """The configuration of `path` with the tiny world's special tokens."""
    config = find_config(path)
    fields = special_ids(build_tokenizer())
    for name, token in fields.pop("text_config").items():
        setattr(config.text_config, name, token)
    for name, token in fields.items():
        setattr(config, name, token)
    if layers is not None:
        cut_layers(config, layers)
    return config


def make_processor(_: Any, config: PreTrainedConfig, *__: Any) -> ProcessorMixin:
    family = find_family(config.model_type)
    return family.build_processor(build_tokenizer(), CHAT_TEMPLATE)


class UnreadWeights(StoredWeights):
    """Weights that are nowhere: with `leave_empty` in the place of the function that reads a tensor, `fill`
    makes every tensor where it would lie."""

    @contextmanager
    def _opened(self) -> Iterator[Callable[[str], Any]]:
        yield lambda name: None


def leave_empty(_: Any, offsets: tuple[int, ...], like: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.empty_like(like, device=device)


def make_skeleton(
    path: Any, config: PreTrainedConfig, dtype: torch.dtype, attn_implementation: str, setting: str
) -> tuple[PreTrainedModel, StoredWeights]:
    """The model on the meta device, as the loader makes it. UserError if its attention is not SDPA's."""
    if attn_implementation != "sdpa":
        raise UserError(
            f"rehearse: model.policy.attn_implementation is {attn_implementation}, which needs a real GPU; "
            "rehearse with sdpa"
        )
    model = build_skeleton(config, dtype)
    compute_buffers(model)
    model.generation_config = GenerationConfig(eos_token_id=config.text_config.eos_token_id)
    return model.eval(), UnreadWeights(path, setting, {})


def cut_layers(config: PreTrainedConfig, layers: int) -> None:
    """Leaves `layers` layers of the language model and of the vision tower, and of the settings that name
    layers those that are left."""
    text, vision = config.text_config, config.vision_config
    text.num_hidden_layers = min(layers, text.num_hidden_layers)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    vision.depth = min(layers, vision.depth)
    if named := getattr(vision, "deepstack_visual_indexes", None):
        vision.deepstack_visual_indexes = list(range(min(len(named), vision.depth, text.num_hidden_layers)))
    if getattr(vision, "fullatt_block_indexes", None):
        vision.fullatt_block_indexes = [vision.depth - 1]
