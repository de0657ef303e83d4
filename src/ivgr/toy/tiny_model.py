"""A tiny Qwen2-VL from nothing: configuration, seeded weights, the tiny world's processor.

Out: an ordinary HF model and processor (real `Qwen2VLForConditionalGeneration`), sized for
the tiny world. What matters for learning to localise at this size: initial weights of
std 1/sqrt(width), a small `rope_theta` (M-RoPE gives image columns the lowest
frequencies, which are blind on a small grid) and one token per word and integer
(`ivgr.toy.tokenizer`).
"""

import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from ivgr.core.settings import PositiveFloat, PositiveInt, Seed, checked
from ivgr.models.attention import set_attention
from ivgr.toy.tokenizer import build_processor, special_ids


@checked("model.policy.")
class TinyScratch:
    """A freshly initialised tiny policy.

    Args:
        width: Hidden size of vision tower and language model.
        layers: Language-model layers.
        vision_layers: Vision-tower layers.
        heads: Attention heads (both towers).
        rope_theta: Base of the rotary frequencies.
        seed: Seed of the initial weights.
    """

    def __init__(
        self,
        width: PositiveInt = 128,
        layers: PositiveInt = 3,
        vision_layers: PositiveInt = 2,
        heads: PositiveInt = 4,
        rope_theta: PositiveFloat = 20.0,
        seed: Seed = 0,
    ) -> None:
        self.width = width
        self.layers = layers
        self.vision_layers = vision_layers
        self.heads = heads
        self.rope_theta = rope_theta
        self.seed = seed

    def load(self) -> tuple[PreTrainedModel, ProcessorMixin]:
        processor = build_processor()
        model = Qwen2VLForConditionalGeneration(self._config(processor.tokenizer))
        set_attention(model)
        _initialise(model, self.seed)
        model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
        model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
        return model, processor

    def _config(self, tokenizer: PreTrainedTokenizerBase) -> Qwen2VLConfig:
        head_dim = self.width // self.heads
        section = [head_dim // 8, head_dim * 3 // 16, head_dim * 3 // 16]
        special = special_ids(tokenizer)
        return Qwen2VLConfig(
            text_config=special.pop("text_config")
            | {
                "vocab_size": len(tokenizer),
                "hidden_size": self.width,
                "intermediate_size": self.width * 3,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.heads,
                "max_position_embeddings": 8192,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": self.rope_theta,
                    "mrope_section": section,
                },
            },
            vision_config={
                "depth": self.vision_layers,
                "embed_dim": self.width,
                "hidden_size": self.width,
                "num_heads": self.heads,
                "mlp_ratio": 3,
            },
            tie_word_embeddings=True,
            **special,
        )


def _initialise(model: nn.Module, seed: int) -> None:
    """Seeded normal weights of std 1/sqrt(fan-in), zero biases, unit norms."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv3d):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=fan_in**-0.5, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5, generator=generator)
