"""The processor of a model directory: read and tried, since a fault of it would show in training only."""

from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from transformers import AutoProcessor, PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

from ivgr.core.images import MAX_PIXELS
from ivgr.core.prompts import GROUNDED, Prompts
from ivgr.models.forward import end_of_turn
from ivgr.models.model_directory import reading, refuse


def read_processor(path: Path | str, config: PreTrainedConfig, setting: str) -> ProcessorMixin:
    """The processor in `path` of the model of `config`; UserError if it lacks a tokenizer or a chat
    template, or is another model's."""
    with reading(path, setting):
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
        fault = (
            _fault_of_parts(processor, config)
            or _fault_of_pixels(processor)
            or _fault_of_template(processor, config)
        )
    if fault is not None:
        refuse(path, setting, fault)
    return processor


def _fault_of_parts(processor: ProcessorMixin, config: PreTrainedConfig) -> str | None:
    """Returns what keeps a processor from encoding for the model of `config`."""
    tokenizer, images = (getattr(processor, name, None) for name in ("tokenizer", "image_processor"))
    if tokenizer is None or images is None:
        return "has no processor of images and text"
    if not getattr(tokenizer, "is_fast", False) or len(tokenizer) < 2:
        return "has no tokenizer; copy the tokenizer's files from the model it was made from"
    if getattr(processor, "image_token_id", None) != config.image_token_id:
        return f"has a tokenizer without the image token {config.image_token_id} of config.json"
    vision = config.vision_config
    sides = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
    found = (images.patch_size, images.merge_size, images.temporal_patch_size)
    if found != sides:
        return f"has a processor of patches {found}, its vision tower reads {sides} (side, merged, in time)"
    if processor.chat_template is None and tokenizer.chat_template is None:
        return "has no chat template; copy chat_template.jinja from the model it was made from"
    return None


def _fault_of_pixels(processor: ProcessorMixin) -> str | None:
    """Returns what keeps the image processor from making patches of an image that it must resize."""
    images, picture = processor.image_processor, Image.new("RGB", (61, 83))
    fewest = getattr(images.size, "shortest_edge", None)
    if not isinstance(fewest, int) or fewest > MAX_PIXELS:
        return f"has an image processor that makes pictures of at least {fewest} pixels; mend its size"
    try:
        found = images(images=[picture], do_convert_rgb=False, return_tensors="pt")
        pixels, grid = found["pixel_values"], found["image_grid_thw"]
        width = 3 * images.temporal_patch_size * images.patch_size**2
        sound = pixels.shape == (grid.prod(), width) and bool(pixels.isfinite().all())
        reason = "" if sound else f": it makes {list(pixels.shape)} of a grid {grid.tolist()}"
    except Exception as error:
        sound, reason = False, f" ({type(error).__name__}: {' '.join(str(error).split())[:100]})"
    return None if sound else f"has an image processor that cannot be used{reason}"


def _fault_of_template(processor: ProcessorMixin, config: PreTrainedConfig) -> str | None:
    """Returns what keeps the chat template from writing a prompt with an image; every token that it writes
    must have an embedding."""
    if processor.tokenizer.chat_template is None:
        processor.tokenizer.chat_template = processor.chat_template
    chat = Prompts().messages("?", 1, GROUNDED)
    try:
        (text,) = processor.apply_chat_template([chat], tokenize=False, add_generation_prompt=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        return f"has a chat template that cannot be used ({type(error).__name__}: {reason})"
    if text.count(processor.image_token) != 1 or chat[0]["content"][-1]["text"] not in text:
        return "has a chat template that leaves out images or text; take that of the model it was made from"
    ids = [*processor.tokenizer.backend_tokenizer.encode(text).ids, end_of_turn(processor.tokenizer)]
    if (odd := find_unembedded(ids, processor.tokenizer, config.get_text_config().vocab_size)) is not None:
        return f"has a chat template that writes {odd!r}, a token without an embedding"
    return None


def find_unembedded(
    ids: Iterable[int | None], tokenizer: PreTrainedTokenizerBase, embedded: int
) -> str | None:
    """The first token of `ids` that a model with `embedded` embeddings has none for: one was added to
    the tokenizer, and the model was not resized."""
    beyond = (one for one in ids if one is not None and one >= embedded)
    return next((str(tokenizer.convert_ids_to_tokens(one)) for one in beyond), None)
