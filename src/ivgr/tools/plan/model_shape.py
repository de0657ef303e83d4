"""The numbers of a model that memory and work depend on, taken from its skeleton on the meta
device. In: a path as `model.policy` has it. Out: a `Shape`; no network, no weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ivgr.core.errors import UserError
from ivgr.models.model_directory import read_config
from ivgr.models.pretrained import TINY
from ivgr.models.registry import FAMILIES, find_family, find_shipped
from ivgr.models.skeleton import build_skeleton


@dataclass(frozen=True)
class Shape:
    """hidden, feed: sizes; queries, keys: heads x head size of queries and of keys; repeats:
    query heads share a key head; normed: queries and keys have norms of their own; likewise for
    the vision tower, whose act counts what its MLP keeps of each feed-forward number. Parameters:
    total, tower, merger (the tower's `mergers`, all together), layers (all decoder layers), layer
    (one), words (embedding and head), linears (in + out of every matrix of the decoder layers), inputs (in of
    those of one layer)."""

    hidden: int
    feed: int
    layers_count: int
    heads: int
    queries: int
    keys: int
    normed: bool
    vocabulary: int
    tower_width: int
    tower_feed: int
    tower_depth: int
    tower_act: int
    tower_rms: bool
    tower_window: int
    features: int
    merge: int
    total: int
    tower: int
    merger: int
    mergers: int
    layers: int
    layer: int
    words: int
    linears: int
    inputs: int

    @property
    def repeats(self) -> bool:
        return self.keys < self.queries


def read_shape(config: PreTrainedConfig) -> Shape:
    """The numbers of the model that `config` describes."""
    model, family = build_skeleton(config), find_family(config.model_type)
    text, vision = config.text_config, config.vision_config
    decoder, tower = family.decoder_layers(model), family.vision_tower(model)
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    blocks = family.vision_blocks(model)
    first: Any = decoder[0]
    block: Any = blocks[0]
    linear = [part for part in decoder.modules() if isinstance(part, nn.Linear)]
    feed = next(m.out_features for m in block.mlp.modules() if isinstance(m, nn.Linear))
    return Shape(
        hidden=text.hidden_size,
        feed=text.intermediate_size,
        layers_count=len(decoder),
        heads=text.num_attention_heads,
        queries=text.num_attention_heads * head,
        keys=text.num_key_value_heads * head,
        normed=hasattr(first.self_attn, "q_norm"),
        vocabulary=model.lm_head.out_features,
        tower_width=block.attn.proj.out_features,
        tower_feed=feed,
        tower_depth=len(blocks),
        tower_act=_kept_by_mlp(block, vision.hidden_act),
        tower_rms=not isinstance(block.norm1, nn.LayerNorm),
        tower_window=(getattr(vision, "window_size", 0) // vision.patch_size) ** 2,
        features=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        merge=vision.spatial_merge_size**2,
        mergers=1 + len(getattr(vision, "deepstack_visual_indexes", ())),
        total=_count(model),
        tower=_count(tower),
        merger=sum(_count(part) for name, part in tower.named_children() if "merger" in name),
        layers=_count(decoder),
        layer=_count(first),
        words=model.lm_head.weight.numel() * (1 if config.tie_word_embeddings else 2),
        linears=sum(part.in_features + part.out_features for part in linear),
        inputs=sum(part.in_features for part in linear) // len(decoder),
    )


def find_config(path: str | Path) -> PreTrainedConfig:
    """The configuration of `path`: "tiny", a directory, or a hub id of a shipped size; a
    UserError lists those for any other."""
    place = TINY if str(path) == "tiny" else Path(path)
    if (place / "config.json").is_file():
        return read_config(place, "model.policy")
    shipped = find_shipped(str(path))
    if shipped is None:
        known = [f.hub_id(size) for f in FAMILIES.values() for size in f.sizes if size != "tiny"]
        raise UserError(
            f"model.policy: {str(path)!r} is no directory with a config.json and no shipped size; "
            f"known are {', '.join(known)}"
        )
    return shipped[0].config(shipped[1])


def _kept_by_mlp(block: nn.Module, act: str) -> int:
    """Feed-forward-sized tensors that a vision block's MLP keeps: gate, its activation, up and
    their product; or what goes into the activation, a sigmoid where it has one, and its result."""
    if hasattr(block.mlp, "gate_proj"):
        return 4
    return 3 if act == "quick_gelu" else 2


def _count(module: nn.Module | PreTrainedModel) -> int:
    return sum(weight.numel() for weight in module.parameters())
