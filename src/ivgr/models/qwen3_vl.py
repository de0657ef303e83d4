"""Qwen3-VL: boxes in thousandths of the image, patches of 16 pixels. Numbers: config.json of
https://huggingface.co/Qwen/Qwen3-VL-2B-Instruct, -4B-Instruct, -8B-Instruct, -32B-Instruct."""

from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor

from ivgr.core.frame import relative
from ivgr.models.family import Family
from ivgr.models.family_fields import text_fields
from ivgr.models.vision_grid import interpolated_inputs

interleaved_fields: Callable[..., dict[str, Any]] = partial(text_fields, interleaved=True)
SMALL_TOWER: dict[str, Any] = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096}
SMALL_TOWER["deepstack_visual_indexes"] = [5, 11, 17]
LARGE_TOWER: dict[str, Any] = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304}
LARGE_TOWER["deepstack_visual_indexes"] = [8, 16, 24]


def _size(tower: dict, hidden: int, *numbers: int, tied: bool = False) -> dict[str, Any]:
    return {
        "text_config": interleaved_fields(
            hidden, *numbers, 151936, length=262144, theta=5e6, section=(24, 20, 20), head_dim=128
        ),
        "vision_config": {
            **tower,
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "out_hidden_size": hidden,
        },
        "tie_word_embeddings": tied,
    }


QWEN3_VL = Family(
    name="qwen3_vl",
    frame=relative,
    patch=16,
    hub="Qwen/Qwen3-VL-{size}-Instruct",
    sizes={
        "2b": _size(SMALL_TOWER, 2048, 6144, 28, 16, 8, tied=True),
        "4b": _size(SMALL_TOWER, 2560, 9728, 36, 32, 8, tied=True),
        "8b": _size(LARGE_TOWER, 4096, 12288, 36, 32, 8),
        "32b": _size(LARGE_TOWER, 5120, 25600, 64, 64, 8),
        "tiny": {
            "text_config": interleaved_fields(
                64, 128, 3, 4, 2, 1460, length=8192, theta=20.0, section=(4, 2, 2), head_dim=16
            ),
            "vision_config": {
                "depth": 3,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_heads": 4,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": [0, 1],
                "out_hidden_size": 64,
            },
            "tie_word_embeddings": True,
        },
    },
    pixels=(256 * 256, 4096 * 4096),
    normal=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    processor=Qwen3VLProcessor,
    video_processor=Qwen3VLVideoProcessor,
    grid_inputs=interpolated_inputs,
)
