"""A tiny Qwen2-VL from nothing: configuration, seeded weights, tokenizer, processor.

Out: an ordinary HF model and processor (real `Qwen2VLForConditionalGeneration`), sized for
the tiny world. What matters for learning to localise at this size: initial weights of
std 1/sqrt(width), a small `rope_theta` (M-RoPE gives image columns the lowest
frequencies, which are blind on a small grid) and one token per word and integer.
"""

import string

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from ivgr.data.prompts import Prompts
from ivgr.policy.attention import use_tree_attention

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PIECES = (
    r" ?<box>\[|\]</box>| ?</?(?:think|answer|box)>"
    r"|[xy][12]| ?[A-Za-z]+|[0-9]+| ?[^\sA-Za-z0-9]|\s"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


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
        width: int = 128,
        layers: int = 3,
        vision_layers: int = 2,
        heads: int = 4,
        rope_theta: float = 20.0,
        seed: int = 0,
    ) -> None:
        self.width, self.layers, self.vision_layers = width, layers, vision_layers
        self.heads, self.rope_theta, self.seed = heads, rope_theta, seed

    def load(self) -> tuple[PreTrainedModel, ProcessorMixin]:
        processor = build_processor()
        model = Qwen2VLForConditionalGeneration(self._config(processor.tokenizer))
        use_tree_attention(model)
        _initialise(model, self.seed)
        model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
        model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
        return model, processor

    def _config(self, tokenizer: PreTrainedTokenizerFast) -> Qwen2VLConfig:
        def ident(token: str) -> int:
            return tokenizer.convert_tokens_to_ids(token)

        head_dim = self.width // self.heads
        section = [head_dim // 8, head_dim * 3 // 16, head_dim * 3 // 16]
        return Qwen2VLConfig(
            text_config={
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
                "bos_token_id": ident("<|endoftext|>"),
                "eos_token_id": ident("<|im_end|>"),
                "pad_token_id": ident("<|endoftext|>"),
            },
            vision_config={
                "depth": self.vision_layers,
                "embed_dim": self.width,
                "hidden_size": self.width,
                "num_heads": self.heads,
                "mlp_ratio": 3,
            },
            image_token_id=ident("<|image_pad|>"),
            video_token_id=ident("<|video_pad|>"),
            vision_start_token_id=ident("<|vision_start|>"),
            vision_end_token_id=ident("<|vision_end|>"),
            tie_word_embeddings=True,
        )


def build_processor() -> Qwen2VLProcessor:
    """Qwen2-VL's own processor around a word-level vocabulary of the tiny world; text
    outside the vocabulary falls back to bytes, so that any question can be asked."""
    tokenizer = _build_tokenizer()
    budget = {"shortest_edge": 56 * 56, "longest_edge": 448 * 448}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=budget),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=budget),
        chat_template=CHAT_TEMPLATE,
    )


def _build_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words = [piece for text in _lexicon() for piece, _ in pieces.pre_tokenize_str(text)]
    vocabulary = dict.fromkeys(alphabet + words)
    bpe = models.BPE(
        vocab={word: index for index, word in enumerate(vocabulary)}, merges=[], ignore_merges=True
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )


def _lexicon() -> list[str]:
    """Text that holds every word and number of the tiny world and of the prompts."""
    prompts = Prompts()
    colors = "red green blue yellow purple black orange white gray brown pink"
    shapes = "circle square triangle cross star circles squares triangles crosses stars"
    places = "upper middle lower left center right above below top bottom"
    words = (
        "The the is are in at of or and a an it there What How many color shape size small large "
        "Is Are Which Where Describe every each object objects no yes not one two three four five six "
        f"system user assistant {colors} {shapes} {places}"
    )
    spaced = " " + words
    bare = words.replace(" ", "\n")
    numbers = "\n".join(str(n) for n in range(1001))
    punctuation = "\n".join(string.punctuation) + " " + " ".join(string.punctuation)
    tags = "<think> </think> <answer> </answer> <box> </box> <box>[ ]</box>"
    tags += "\n" + tags.replace(" ", "\n")
    return [tags, prompts.grounded, prompts.textual, spaced, bare, punctuation, numbers]


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
