"""The subject of a measurement: a model of a real family's shape with random weights, and queries of random
pixels and words. In: a `Setting`. Out: a model and its queries."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, Qwen2VLForConditionalGeneration

from ivgr.core.errors import UserError
from ivgr.core.prompts import GROUNDED, TEXTUAL
from ivgr.core.query import Group, Query, Rollout
from ivgr.core.settings import AtLeastTwo, Device, Dtype, NonNegativeInt, PositiveInt, checked, dtype_of
from ivgr.models.attention import set_attention
from ivgr.models.lora import AdapterConfig
from ivgr.models.pretrained import TINY, Pretrained
from ivgr.models.qwen2_vl import QWEN2_VL
from ivgr.models.trainable import TrainableConfig
from ivgr.tools.rehearse.unread_models import cut_layers

SHAPES = [size for size in QWEN2_VL.sizes if size != "tiny"]
WORDS = 1000
SPECIAL = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
# Our torch optimizer, and what the peer calls the same.
OPTIMIZERS = {"adamw": (torch.optim.AdamW, "adamw_torch"), "sgd": (torch.optim.SGD, "sgd")}


@checked("bench: --setting.")
@dataclass(frozen=True)
class Setting:
    """The model and the queries that are timed.

    Args:
        shape: "tiny", or a size of Qwen2-VL with random weights: "2b", "7b", "72b".
        layers: Cut the language model and the vision tower of a shape to so many layers; not of "tiny".
        queries: Queries per iteration, of one image each.
        image_tokens: Tokens per image, after the 2 x 2 merge.
        question: Tokens of a question.
        instruction: Tokens of a stream's instruction.
        group_size: Rollouts per query and stream.
        response: Tokens of every response.
        lengths: For `bench rollout`, compares a batch that is refilled with one that is left to run empty, on
            responses of "geometric" lengths (their mean a quarter of the longest) or of "equal" ones.
        room: With lengths, queries decoded together; there are eight times as many.
        longest: With lengths, tokens of the longest response.
        micro_batch: Queries a micro-batch of the update; 0 takes all at once.
        checkpointing: Gradient checkpointing, for all contenders.
        adapter: Rank of low-rank adapters on the language model, trained instead of the weights by all
            contenders; 0 for none.
        optimizer: "adamw" or "sgd"; two trainers at 7B leave one GPU no room for AdamW's state.
        cuda_graphs: Launch each decoding step as one CUDA graph.
        device: Where to run, "cpu" or "cuda".
        dtype: Weights' dtype.
    """

    shape: str = "tiny"
    layers: PositiveInt | None = None
    queries: PositiveInt = 1
    image_tokens: PositiveInt = 512
    question: PositiveInt = 24
    instruction: PositiveInt = 24
    group_size: AtLeastTwo = 5
    response: PositiveInt = 32
    lengths: Literal["geometric", "equal"] | None = None
    room: PositiveInt = 8
    longest: PositiveInt = 64
    micro_batch: NonNegativeInt = 0
    checkpointing: bool = False
    adapter: NonNegativeInt = 0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    cuda_graphs: bool = False
    device: Device = "cpu"
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        if self.shape != "tiny" and self.shape not in SHAPES:
            raise UserError(f"bench --setting.shape is {self.shape!r}, must be tiny, {' or '.join(SHAPES)}")
        if self.shape == "tiny" and self.layers:
            raise UserError(
                f"bench --setting.layers is {self.layers}, which cuts no tiny model; leave it out"
            )
        if self.micro_batch and self.queries % self.micro_batch:
            raise UserError(f"bench --setting.micro_batch must divide --setting.queries {self.queries}")


def make_optimizer(setting: Setting, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the setting over the trained parameters of `model`."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return OPTIMIZERS[setting.optimizer][0](trained, lr=1e-6)


def build_model(setting: Setting) -> PreTrainedModel:
    """The policy on the setting's device, in eval mode."""
    if setting.shape == "tiny":
        model = Pretrained("tiny", setting.dtype).load()[0].to(setting.device)  # pyright: ignore[reportArgumentType]
    else:
        model = _random_model(setting)
        set_attention(model)
    adapter = AdapterConfig(rank=setting.adapter) if setting.adapter else None
    TrainableConfig(adapter=adapter, gradient_checkpointing=setting.checkpointing).apply(model.eval())
    return model


def _random_model(setting: Setting) -> PreTrainedModel:
    torch.manual_seed(0)
    with torch.device(setting.device):
        return Qwen2VLForConditionalGeneration._from_config(
            describe_shape(setting), dtype=dtype_of(setting.dtype), attn_implementation="sdpa"
        )


def describe_shape(setting: Setting) -> PreTrainedConfig:
    """Returns the configuration of the setting's shape; special tokens are the tiny model's, so that its
    tokenizer serves all."""
    tiny = AutoConfig.from_pretrained(TINY)
    if setting.shape == "tiny":
        return tiny
    config = QWEN2_VL.config(setting.shape, **{name: getattr(tiny, name) for name in SPECIAL})
    if setting.layers:
        cut_layers(config, setting.layers)
    return config


def build_queries(setting: Setting, model: PreTrainedModel, rollouts: bool, seed: int = 0) -> list[Query]:
    """Paired queries of random content; with `rollouts` each group has its random responses."""
    generator = torch.Generator().manual_seed(seed)
    return [_build_query(setting, model, generator, rollouts) for _ in range(setting.queries)]


def _build_query(
    setting: Setting, model: PreTrainedModel, generator: torch.Generator, rollouts: bool
) -> Query:
    def words(count: int) -> torch.Tensor:
        return torch.randint(WORDS // 2, WORDS, (count,), generator=generator)

    def rollout() -> Rollout:
        zeros = torch.zeros(setting.response)
        return Rollout(words(setting.response), zeros, zeros, "", False, advantage=1.0)

    config, height, width = model.config, *merged_grid(setting.image_tokens)
    image = [
        config.vision_start_token_id,
        *[config.image_token_id] * setting.image_tokens,
        config.vision_end_token_id,
    ]
    patch = config.vision_config.patch_size
    features = 3 * config.vision_config.temporal_patch_size * patch**2
    groups = [
        Group(stream, words(setting.instruction), [rollout() for _ in range(setting.group_size) if rollouts])
        for stream in (GROUNDED, TEXTUAL)
    ]
    return Query(
        sample=None,  # pyright: ignore[reportArgumentType]
        prefix=torch.cat([torch.tensor(image), words(setting.question)]),
        groups=groups,
        pixel_values=torch.randn(setting.image_tokens * 4, features, generator=generator).to(model.dtype),
        image_grid_thw=torch.tensor([[1, height * 2, width * 2]]),
    )


def merged_grid(tokens: int) -> tuple[int, int]:
    """The most square rows x columns of so many image tokens."""
    rows = next(rows for rows in range(int(tokens**0.5), 0, -1) if tokens % rows == 0)
    return rows, tokens // rows
