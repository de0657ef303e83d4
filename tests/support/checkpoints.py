"""Tiny checkpoints of the real families with random weights, in HF format on disk: the words
and the chat template are the shipped policy's."""

from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from ivgr.cli.main import main
from ivgr.toy.tokenizer import SPECIAL, build_processor
from support.families import TEXT, VISION

CONFIG = Path(__file__).parents[2] / "configs" / "tiny.yaml"
SMALL = {
    "model.iterations": 3, "model.engine.sampling.max_new_tokens": 6, "model.engine.sampling.group_size": 2,
    "model.update.optimizer.lr": 1e-2, "model.update.schedule.warmup": 0,
    "data.prompts": 4, "data.train_count": 30, "data.val_count": 12, "data.val_queries": 2,
}  # fmt: skip


def fit_small(policy: Path, root: Path, *options: str) -> Path:
    """Three iterations of `ivgr fit`; its last checkpoint."""
    words = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    where = ["--model.policy", str(policy), "--trainer.default_root_dir", str(root)]
    main(["fit", "--config", str(CONFIG), *words, *where, *options])
    return root / "checkpoints" / "last.ckpt"


def write_checkpoint(family: str, folder: Path) -> Path:
    """Whatever is written loads with stock `from_pretrained`."""
    ours = build_processor()
    tokenizer = ours.tokenizer
    end, _, stop, vision_start, vision_end, image, video = map(tokenizer.convert_tokens_to_ids, SPECIAL)
    special = {"bos_token_id": end, "eos_token_id": stop, "pad_token_id": end}
    config = CONFIG_MAPPING[family](
        text_config=TEXT | {"vocab_size": len(tokenizer)} | special,
        vision_config=VISION[family],
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=vision_start,
        vision_end_token_id=vision_end,
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3 if "embed" in name else weight[0].numel() ** -0.5)
    model.generation_config.eos_token_id = stop
    model.save_pretrained(folder)
    _processor(family, ours).save_pretrained(folder)
    return folder


def _processor(family: str, ours):
    if family == "qwen2_vl":
        return ours
    from transformers import Qwen2_5_VLProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    parts = {"tokenizer": ours.tokenizer, "chat_template": ours.chat_template}
    if family == "qwen2_5_vl":
        return Qwen2_5_VLProcessor(ours.image_processor, video_processor=ours.video_processor, **parts)
    size = {"shortest_edge": 64 * 64, "longest_edge": 256 * 256}
    image = type(ours.image_processor)(patch_size=16, size=size)
    return Qwen3VLProcessor(image, video_processor=Qwen3VLVideoProcessor(patch_size=16, size=size), **parts)
