"""`ivgr scratch`: a random-weight checkpoint of a family's true shape, in HF format.

In: family, size and seed. Out: a folder that `model.policy` and stock transformers load: sharded
safetensors, configuration, the family's own processor around the tiny policy's tokenizer. It
speaks nonsense; it is for trying hardware, speed and memory before any weights are downloaded.
"""

from pathlib import Path

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ivgr.core.atomic_files import folder_to_write
from ivgr.core.errors import UserError
from ivgr.core.seeding import derive_seed
from ivgr.core.settings import Dtype, PositiveInt, Seed, checked, dtype_of
from ivgr.models.family import Family
from ivgr.models.registry import find_family
from ivgr.models.skeleton import build_skeleton
from ivgr.toy.tokenizer import CHAT_TEMPLATE, PIXELS, build_tokenizer, special_ids


@checked("scratch: --")
def scratch(
    family: str,
    size: str,
    folder: Path,
    layers: PositiveInt | None = None,
    dtype: Dtype = "bfloat16",
    seed: Seed = 0,
) -> None:
    """Write a random-weight checkpoint of a model family's true shape.

    Args:
        family: qwen2_vl, qwen2_5_vl, qwen3_vl, or one of your own (see `ivgr.models.register`).
        size: A shipped size such as 7b, or tiny (a few narrow layers, for a CPU).
        folder: Where it goes; must be new or empty. Needs the model's size in memory.
        layers: Language-model layers, if not the size's own.
        dtype: Weights' dtype: float32, bfloat16 or float16.
        seed: Seed of the weights.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"scratch: {folder} holds something already; name a new folder")
    shape = find_family(family)
    tokenizer = build_tokenizer()
    model = draw_model(configure(shape, size, layers, tokenizer), dtype_of(dtype), seed)
    processor = shape.build_processor(tokenizer, CHAT_TEMPLATE, PIXELS if size == "tiny" else None)
    with folder_to_write(folder) as part:
        model.save_pretrained(part)
        processor.save_pretrained(part)
    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"{parameters:,} random parameters of {family} {size} in {folder}")


def configure(
    family: Family, size: str, layers: int | None, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedConfig:
    """The size's own configuration, vocabulary size too; special tokens are the tokenizer's."""
    special = special_ids(tokenizer)
    text = family.fields(size)["text_config"] | special.pop("text_config")
    if layers is not None:
        text["num_hidden_layers"] = layers
    return family.config(size, text_config=text, **special)


def draw_model(config: PreTrainedConfig, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    """Matrices of std 1/sqrt(fan-in), biases 0, norms 1; each weight has its own stream."""
    model = build_skeleton(config, dtype).to_empty(device="cpu")
    model.tie_weights()
    for name, weight in model.named_parameters():
        generator = torch.Generator().manual_seed(derive_seed(seed, name))
        if weight.dim() > 1:
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5, generator=generator)
        else:
            nn.init.constant_(weight, 0.0 if name.endswith("bias") else 1.0)
    for module in model.modules():
        if list(module.buffers(recurse=False)):  # rotary frequencies, which no checkpoint holds
            model._init_weights(module)
    text = config.text_config
    model.generation_config = GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
    )
    return model
