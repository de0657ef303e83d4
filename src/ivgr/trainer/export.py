"""`ivgr export`: a checkpoint's policy as an ordinary HF directory, adapters merged in.

In: a checkpoint of `ivgr fit`, read weights-only. Out: safetensors, configuration and
processor, which stock transformers and vLLM load and `ivgr fit --model.policy` continues from.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, ProcessorMixin

from ivgr.core.atomic_files import folder_to_write
from ivgr.core.checkpoint_file import WEIGHTS, Either, read_checkpoint, refuse_misshapen, refuse_not_finite
from ivgr.core.errors import UserError
from ivgr.core.state_dict import find_mismatch, shapes_of
from ivgr.models.lora import AdapterConfig, Targets, is_adapted, merge_adapters
from ivgr.models.model_directory import write_directory
from ivgr.models.pretrained import Pretrained
from ivgr.models.trainable import TrainableConfig
from ivgr.trainer.sharded_checkpoint import read_weights

PREFIX = "policy."
# The shape of `describe_policy`; old checkpoints have neither freeze nor size.
POLICY = {
    "path": str | None,
    "dtype": Literal["float32", "bfloat16", "float16", None],
    "adapter": Either([{"rank": int, "alpha": float, "targets": Targets}, type(None)]),
    "freeze?": [str],
    "size?": {str: int},
}


def describe_policy(source: object, form: TrainableConfig, processor: ProcessorMixin) -> dict[str, Any]:
    """Returns how the policy was made, for checkpoints: path (None if `source` is no `Pretrained`), dtype,
    adapter (None or its settings), freeze, and size (the image processor's bounds on pixels)."""
    adapter = None if form.adapter is None else asdict(form.adapter)
    known = isinstance(source, Pretrained)
    return {
        "path": str(source.path) if known else None,
        "dtype": source.dtype if known else None,
        "adapter": adapter,
        "freeze": list(form.freeze),
        "size": size_of(processor),
    }


def size_of(processor: ProcessorMixin) -> dict[str, int]:
    """Returns the image processor's bounds on the pixels of an image."""
    return {name: int(bound) for name, bound in dict(processor.image_processor.size).items() if bound}


def export(ckpt: Path, dst: Path, policy: str | None = None) -> None:
    """Write the policy of a checkpoint as a HF directory.

    Args:
        ckpt: A checkpoint of `ivgr fit`.
        dst: Where the model and its processor go; a new or empty folder.
        policy: HF directory, hub id or "tiny" that the run began with, if it has moved since.
    """
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise UserError(f"export: {dst} is there already; name a new folder")
    checkpoint = _read_own(ckpt)
    made = checkpoint["ivgr"]["policy"]
    path = policy or made["path"]
    if path is None:
        raise UserError(f"export: {ckpt} does not know what its policy began with; name it by --policy")
    model, processor = Pretrained(path, made["dtype"] or "float32").load()
    if made.get("size", size_of(processor)) != size_of(processor):
        processor.image_processor.size = made["size"]
    if made["adapter"] is not None:
        AdapterConfig(**made["adapter"]).inject(model)
    load_policy(model, checkpoint["state_dict"], f"export: {ckpt} does not fit {path}")
    if is_adapted(model):
        merge_adapters(model)
    with folder_to_write(dst) as folder:
        write_directory(model, processor, folder)
    print(f"the policy after {checkpoint['global_step']} optimizer updates is in {dst}")


def _read_own(path: Path) -> dict[str, Any]:
    """Reads a checkpoint with its whole weights; UserError if they cannot be read or are not finite."""
    checkpoint = read_checkpoint(path, whole=True)
    if path.is_dir():
        checkpoint["state_dict"] = read_weights(path)
    refuse_misshapen(checkpoint, {"state_dict": WEIGHTS, "ivgr": {"policy": POLICY}}, path)
    refuse_not_finite(checkpoint["state_dict"], path)
    return checkpoint


def load_policy(model: PreTrainedModel, saved: dict[str, torch.Tensor], complaint: str) -> None:
    """Fills `model` with the module's weights `saved`; UserError with `complaint` unless names
    and shapes agree."""
    weights = {name.removeprefix(PREFIX): value for name, value in saved.items() if name.startswith(PREFIX)}
    weights |= _tied(model, weights)
    odd = find_mismatch(shapes_of(model.state_dict()), shapes_of(weights))
    if odd is not None:
        raise UserError(f"{complaint} (first at {odd}); name the policy it was made from by --policy")
    model.load_state_dict(weights)


def _tied(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the weights that are missing because the parameter is stored under another name."""
    first = {parameter: name for name, parameter in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    missing = {name: first[parameter] for name, parameter in every if name not in weights}
    return {name: weights[other] for name, other in missing.items() if other in weights}
