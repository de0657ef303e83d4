"""The tiny world's words: one token per word and integer, the chat template, and Qwen2-VL's own
processor around them. In: nothing but the prompts. Out: tokenizer and processor."""

import string
from typing import Any, cast

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, ProcessorMixin

from ivgr.core.prompts import Prompts
from ivgr.models.qwen2_vl import QWEN2_VL

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
# Fewest and most pixels of a tiny model's images.
PIXELS = (56 * 56, 448 * 448)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The fields of a HF configuration that name the tokenizer's special tokens; those of
    its text_config stand under that name."""

    def ident(token: str) -> int:
        return cast(int, tokenizer.convert_tokens_to_ids(token))

    return {
        "text_config": {
            "bos_token_id": ident("<|endoftext|>"),
            "eos_token_id": ident("<|im_end|>"),
            "pad_token_id": ident("<|endoftext|>"),
        },
        "image_token_id": ident("<|image_pad|>"),
        "video_token_id": ident("<|video_pad|>"),
        "vision_start_token_id": ident("<|vision_start|>"),
        "vision_end_token_id": ident("<|vision_end|>"),
    }


def build_processor() -> ProcessorMixin:
    """Qwen2-VL's own processor around a word-level vocabulary of the tiny world; text
    outside the vocabulary falls back to bytes, so that any question can be asked."""
    return QWEN2_VL.build_processor(build_tokenizer(), CHAT_TEMPLATE, PIXELS)


def build_tokenizer() -> PreTrainedTokenizerFast:
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
