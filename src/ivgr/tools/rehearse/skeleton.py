"""Models without weights: what stands in for reading a model directory.

In: a path or hub id as `model.policy` has it. Out: its configuration, the family's own processor around the
tiny world's tokenizer, and the model's every shape in memory that nothing fills.
"""

from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, ProcessorMixin

from ivgr.core.errors import UserError
from ivgr.models import pretrained
from ivgr.models.registry import find_family
from ivgr.tools.plan.model_shape import find_config
from ivgr.tools.random_checkpoint import build_skeleton
from ivgr.toy.tokenizer import CHAT_TEMPLATE, build_tokenizer, special_ids
from ivgr.trainer import reference


def skeleton_readers(layers: int | None) -> list[tuple[Any, str, Any]]:
    """The functions that stand in: module, name, function. `layers` cuts the models."""
    configure = partial(describe_model, layers=layers)
    return [
        (pretrained, "read_config", configure),
        (pretrained, "read_processor", make_processor),
        (pretrained, "read_model", make_model),
        (reference, "read_config", configure),
        (reference, "read_model", make_model),
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


def make_model(
    _: Any, config: PreTrainedConfig, dtype: torch.dtype, attn_implementation: str, *__: Any
) -> PreTrainedModel:
    """The model in memory that nothing fills, where transformers would put it: on the device of the context.
    UserError if its attention is not SDPA's."""
    if attn_implementation != "sdpa":
        raise UserError(
            f"rehearse: model.policy.attn_implementation is {attn_implementation}, which needs a real GPU; "
            "rehearse with sdpa"
        )
    model = build_skeleton(config, dtype).to_empty(device=torch.get_default_device())
    model.tie_weights()
    model.generation_config = GenerationConfig(eos_token_id=config.text_config.eos_token_id)
    return model.eval()


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
