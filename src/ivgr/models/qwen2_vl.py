"""Qwen2-VL: boxes in thousandths of the image. Numbers: config.json of
https://huggingface.co/Qwen/Qwen2-VL-2B-Instruct, -7B-Instruct and -72B-Instruct."""

from typing import Any

from transformers import Qwen2VLProcessor, Qwen2VLVideoProcessor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ivgr.core.frame import relative
from ivgr.models.family import Family
from ivgr.models.family_fields import text_fields
from ivgr.models.vision_grid import image_inputs


def _size(hidden: int, *numbers: int, tied: bool = False) -> dict[str, Any]:
    return {
        "text_config": text_fields(hidden, *numbers, length=32768, theta=1e6, section=(16, 24, 24)),
        "vision_config": {"hidden_size": hidden},
        "tie_word_embeddings": tied,
    }


QWEN2_VL = Family(
    name="qwen2_vl",
    frame=relative,
    patch=14,
    hub="Qwen/Qwen2-VL-{size}-Instruct",
    sizes={
        "2b": _size(1536, 8960, 28, 12, 2, 151936, tied=True),
        "7b": _size(3584, 18944, 28, 28, 4, 152064),
        "72b": _size(8192, 29568, 80, 64, 8, 152064),
        "tiny": {
            "text_config": text_fields(
                64, 128, 3, 4, 2, 1460, length=8192, theta=20.0, section=(2, 3, 3), head_dim=16
            ),
            "vision_config": {
                "depth": 2,
                "embed_dim": 64,
                "hidden_size": 64,
                "num_heads": 4,
                "mlp_ratio": 2,
            },
            "tie_word_embeddings": True,
        },
    },
    pixels=(56 * 56, 3584 * 3584),
    normal=(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    processor=Qwen2VLProcessor,
    video_processor=Qwen2VLVideoProcessor,
    grid_inputs=image_inputs,
)
