"""The batch size of a benchmark: as many rows as fit in the free memory.

In: the model and what a row may be at most. Out: a count. Where that was too many after all, the engine
halves it (`ivgr.rollout.transformers_engine`).
"""

from copy import deepcopy

from transformers import PreTrainedModel, ProcessorMixin

from ivgr.core.memory import free_bytes
from ivgr.tools.inference.mode_names import Mode
from ivgr.tools.plan.model_shape import Shape, read_shape

MOST = 64
SHARE = 0.8  # of the free memory that is planned for
WORDS = 512  # tokens of a question, its options and the instruction
FP32 = 4
MASK = 10  # bytes per pair of prompt tokens: the mask of a prompt's attention, as it is made


def choose_batch(
    model: PreTrainedModel, processor: ProcessorMixin, mode: Mode, max_new_tokens: int, max_prompt_tokens: int
) -> int:
    """A power of two up to `MOST`, for rows with one image of the most pixels that the processor passes
    (in tool mode as many again for its crops)."""
    images = processor.image_processor
    image_tokens = images.size["longest_edge"] // (images.patch_size * images.merge_size) ** 2
    tokens = min(image_tokens * (2 if mode == "tool" else 1) + WORDS, max_prompt_tokens)
    row = row_bytes(read_shape(deepcopy(model.config)), tokens, max_new_tokens, model.dtype.itemsize)
    return fit_rows(free_bytes(model.device), row)


def fit_rows(free: int, row: int) -> int:
    """Returns the largest power of two, from 1 to `MOST`, of rows of `row` bytes that fit in `free` bytes."""
    held = max(1, min(MOST, int(SHARE * free // row)))
    return 1 << (held.bit_length() - 1)


def row_bytes(shape: Shape, tokens: int, max_new_tokens: int, size: int) -> int:
    """What answering one prompt of `tokens` adds to the weights, in bytes, with numbers of `size` bytes:
    keys and values of prompt and response (old ones stand beside new ones as these grow), one layer's or
    vision block's activations and the attention's mask, logits of a step."""
    cache = 2 * shape.layers_count * shape.keys * size * (tokens + 2 * max_new_tokens)
    language = tokens * (3 * shape.hidden + 3 * shape.feed)
    tower = tokens * shape.merge * (3 * shape.tower_width + 3 * shape.tower_feed)
    sampling = shape.vocabulary * (size + 3 * FP32)
    return cache + max(language, tower) * size + MASK * tokens**2 + sampling
