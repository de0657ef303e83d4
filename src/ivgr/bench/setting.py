"""What is timed: a model of a real family's shape with random weights, and queries of
random pixels and words. In: a `Setting`. Out: a model and its queries."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from ivgr.data.prompts import GROUNDED, TEXTUAL
from ivgr.errors import UserError
from ivgr.policy.attention import use_tree_attention
from ivgr.policy.load import Pretrained
from ivgr.query import Group, Query, Rollout

# hidden size, feed-forward size, layers, heads, key-value heads, vocabulary, tied embeddings
# https://huggingface.co/Qwen/Qwen2-VL-2B-Instruct and -7B-Instruct, config.json
SHAPES = {
    "2b": (1536, 8960, 28, 12, 2, 151936, True),
    "7b": (3584, 18944, 28, 28, 4, 152064, False),
}
WORDS = 1000


@dataclass(frozen=True)
class Setting:
    """shape "tiny", "2b" or "7b"; image_tokens an image (after the 2 x 2 merge), one image a
    query; question and instruction in tokens; group_size rollouts a stream, of response
    tokens each."""

    shape: str = "tiny"
    queries: int = 1
    image_tokens: int = 512
    question: int = 24
    instruction: int = 24
    group_size: int = 5
    response: int = 32
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.shape != "tiny" and self.shape not in SHAPES:
            raise UserError(f"bench --setting.shape is {self.shape!r}, must be tiny, {' or '.join(SHAPES)}")


def build_model(setting: Setting) -> PreTrainedModel:
    """The policy, in eval mode, on the setting's device."""
    dtype, device = getattr(torch, setting.dtype), torch.device(setting.device)
    if setting.shape == "tiny":
        return Pretrained("tiny", setting.dtype).load()[0].to(device).eval()
    hidden, feed, layers, heads, kv_heads, vocabulary, tied = SHAPES[setting.shape]
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": feed,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1_000_000.0,
                "mrope_section": [16, 24, 24],
            },
        },
        vision_config={"hidden_size": hidden},
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2VLForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation="sdpa")
    use_tree_attention(model)
    return model.eval()


def build_queries(setting: Setting, model: PreTrainedModel, rollouts: bool, seed: int = 0) -> list[Query]:
    """Paired queries of random content; with `rollouts` each group has its random responses."""
    generator = torch.Generator().manual_seed(seed)
    return [_build_query(setting, model, generator, rollouts) for _ in range(setting.queries)]


def _build_query(setting: Setting, model, generator: torch.Generator, rollouts: bool) -> Query:
    def words(count: int) -> torch.Tensor:
        return torch.randint(WORDS // 2, WORDS, (count,), generator=generator)

    def rollout() -> Rollout:
        zeros = torch.zeros(setting.response)
        return Rollout(words(setting.response), zeros, zeros, "", False, advantage=1.0)

    config, height, width = model.config, *_merged_grid(setting.image_tokens)
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
        sample=None,
        prefix=torch.cat([torch.tensor(image), words(setting.question)]),
        groups=groups,
        pixel_values=torch.randn(setting.image_tokens * 4, features, generator=generator),
        image_grid_thw=torch.tensor([[1, height * 2, width * 2]]),
    )


def _merged_grid(tokens: int) -> tuple[int, int]:
    """The most square rows x columns of so many image tokens."""
    rows = next(rows for rows in range(int(tokens**0.5), 0, -1) if tokens % rows == 0)
    return rows, tokens // rows
