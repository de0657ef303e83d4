"""Qwen2.5-VL: boxes in pixels of the resized image. Numbers: config.json of
https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct, -7B-Instruct, -32B-Instruct, -72B-Instruct."""

from typing import Any

from transformers import Qwen2_5_VLProcessor, Qwen2VLVideoProcessor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ivgr.core.frame import absolute
from ivgr.models.family import Family
from ivgr.models.family_fields import text_fields
from ivgr.models.vision_grid import window_inputs


def _size(vision_feed: int, hidden: int, *numbers: int, tied: bool = False) -> dict[str, Any]:
    return {
        "text_config": text_fields(hidden, *numbers, length=128000, theta=1e6, section=(16, 24, 24)),
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": vision_feed,
            "num_heads": 16,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "out_hidden_size": hidden,
        },
        "tie_word_embeddings": tied,
    }


QWEN2_5_VL = Family(
    name="qwen2_5_vl",
    frame=absolute,
    patch=14,
    hub="Qwen/Qwen2.5-VL-{size}-Instruct",
    sizes={
        "3b": _size(3420, 2048, 11008, 36, 16, 2, 151936, tied=True),
        "7b": _size(3420, 3584, 18944, 28, 28, 4, 152064),
        "32b": _size(3456, 5120, 27648, 64, 40, 8, 152064),
        "72b": _size(3456, 8192, 29568, 80, 64, 8, 152064),
        "tiny": {
            "text_config": text_fields(
                64, 128, 3, 4, 2, 1460, length=8192, theta=20.0, section=(2, 3, 3), head_dim=16
            ),
            "vision_config": {
                "depth": 3,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_heads": 4,
                "window_size": 56,
                "fullatt_block_indexes": [1],
                "out_hidden_size": 64,
            },
            "tie_word_embeddings": True,
        },
    },
    pixels=(56 * 56, 3584 * 3584),
    normal=(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    processor=Qwen2_5_VLProcessor,
    video_processor=Qwen2VLVideoProcessor,
    grid_inputs=window_inputs,
)
