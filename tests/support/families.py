"""Tiny models of the real families with random weights, grouped-query attention included."""

import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, PreTrainedModel

from ivgr.core.query import Group, Query, Rollout
from ivgr.models.attention import set_attention

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
WIDTH, WORDS = 32, 200
TOKENS = {
    "image_token_id": 201,
    "video_token_id": 202,
    "vision_start_token_id": 203,
    "vision_end_token_id": 204,
}
TEXT = {
    "vocab_size": 210,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 1, 1]},
}
VISION = {
    "qwen2_vl": {"depth": 2, "embed_dim": 32, "hidden_size": WIDTH, "num_heads": 2, "mlp_ratio": 2},
    "qwen2_5_vl": {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "window_size": 56,  # two by two merged patches
        "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [1],
    },
    "qwen3_vl": {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    },
}


def tiny_family(family: str, seed: int = 0, **text) -> PreTrainedModel:
    """A model whose every weight is random (fresh ones start with zeros and ones); `text` beside or in
    place of TEXT."""
    config = CONFIG_MAPPING[family](text_config=TEXT | text, vision_config=VISION[family], **TOKENS)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            scale = 0.1 if weight.dim() < 2 else weight[0].numel() ** -0.5
            weight.copy_(centre + scale * torch.randn(weight.shape, generator=generator))
    set_attention(model)
    return model.eval()


def patch_features(family: str) -> int:
    """Numbers a vision patch holds: channels x frames x side x side."""
    return 3 * 2 * (16 if family == "qwen3_vl" else 14) ** 2


def make_tree(model, generator, images, streams, lengths):
    """A random tree; lengths[s][n] response tokens."""

    def words(count):
        return torch.randint(0, WORDS, (count,), generator=generator)

    config = model.config
    parts, grids, pixels = [words(3)], [], []
    for height, width in images:
        start, end = config.vision_start_token_id, config.vision_end_token_id
        tokens = [start, *[config.image_token_id] * (height * width), end]
        parts.append(torch.tensor(tokens))
        grids.append([1, height * 2, width * 2])
        features = patch_features(config.model_type)
        pixels.append(torch.randn(height * width * 4, features, generator=generator))
    parts.append(words(4))
    groups = []
    for stream in range(streams):
        group = Group(f"stream{stream}", words(2 + 3 * stream))
        for count in lengths[stream]:
            tokens = words(count)
            group.rollouts.append(Rollout(tokens, torch.zeros(count), torch.zeros(count), "", False))
        groups.append(group)
    return Query(
        sample=None,
        prefix=torch.cat(parts),
        groups=groups,
        pixel_values=torch.cat(pixels) if pixels else None,
        image_grid_thw=torch.tensor(grids) if grids else None,
    )


class Words:
    """In place of a tokenizer, which names no end of its own."""

    eos_token_id = chat_template = None

    def decode(self, tokens, **_):
        return " ".join(map(str, tokens.tolist()))
