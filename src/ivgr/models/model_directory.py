"""Model directories in HF format, read and written in one place.

In: a path or hub id. Out: configuration, model and processor that are whole and belong together.
Nothing in a directory is executed: weights are safetensors, and code of the model's own is refused.
"""

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from ivgr.core.checkpoint_file import META
from ivgr.core.errors import UserError, say
from ivgr.core.finite import find_not_finite
from ivgr.models.forward import stop_ids
from ivgr.models.registry import find_family
from ivgr.models.skeleton import build_skeleton

# As many parameters as the files hold may be described: tied weights lie there once.
MOST_TIMES = 4
POINTER = b"version https://git-lfs"
# What transformers reads beside the weights.
SETTINGS = (
    "config", "generation_config", "processor_config", "preprocessor_config", "video_preprocessor_config",
    "tokenizer_config", "tokenizer", "special_tokens_map", "added_tokens", "vocab", "chat_template",
    "model.safetensors.index",
)  # fmt: skip
MIXED = "config.json and weights must be of one model"
NOT_FINITE = "holds weights that are not finite (first in {}); take an earlier copy"
ADAPTER = (
    "is an adapter of peft without its model; merge it (merge_and_unload, then save_pretrained) and name "
    "the folder that this writes"
)


def read_config(path: Path | str, setting: str) -> PreTrainedConfig:
    """The configuration of the model in `path`, a directory or hub id; UserError, which begins with
    `setting`, if there is none or it is of no use here."""
    _check_files(Path(path), setting)
    with reading(path, setting):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        for part in (config, config.get_text_config()):
            if found := getattr(part, "quantization_config", None):
                method = found.get("quant_method") if isinstance(found, dict) else found.quant_method
                refuse(path, setting, f"is quantised ({method}); name the model that it was made from")
    return config


def read_model(
    path: Path | str, config: PreTrainedConfig, dtype: torch.dtype, attn_implementation: str, setting: str
) -> PreTrainedModel:
    """The model of `config` with every weight from the files in `path`; UserError names weights that
    are missing, left over, of another shape or not finite."""
    with reading(path, setting):
        fault = fault_of_size(_count_held(Path(path)), build_skeleton(config, dtype, attn_implementation))
    if fault is not None:
        refuse(path, setting, fault)
    with reading(path, setting), _without_report():
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            attn_implementation=attn_implementation,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        model, report = loaded
        rotary = fault_of_rotary(model)
    if getattr(model, "peft_config", None) is not None:
        refuse(path, setting, ADAPTER)
    if (fault := fault_of_report(report)) is not None:
        refuse(path, setting, f"{fault}; {MIXED}")
    if rotary is not None:
        refuse(path, setting, rotary)
    if (name := find_not_finite(model.named_parameters())) is not None:
        refuse(path, setting, NOT_FINITE.format(name))
    return model


def write_directory(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """Writes what stock transformers and vLLM load and `read_model` reads; all tokens at which a
    response ends here end one there too."""
    own, stops = model.generation_config.eos_token_id, stop_ids(model, processor.tokenizer)
    if set(stops) != set(own if isinstance(own, list) else [own]):
        model.generation_config.eos_token_id = stops
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def refuse_to_replace(path: Path, setting: str, root: Path) -> None:
    """UserError if the model that is to lie in `path` would take the place of anything but a model, or of
    `root`, where the run lies."""
    held = sorted(one.name for one in path.iterdir()) if path.is_dir() else []
    if root.resolve().is_relative_to(path.resolve()):
        refuse(path, setting, "holds the run itself; name a folder in it")
    if (held or (path.exists() and not path.is_dir())) and "config.json" not in held:
        refuse(path, setting, "is there already and is no model, which it would be replaced by; name another")


def refuse(path: Path | str, setting: str, fault: str) -> None:
    raise UserError(f"{setting}: {str(path)!r} {fault}")


@contextmanager
def reading(path: Path | str, setting: str) -> Iterator[None]:
    """Whatever the libraries raise that make a model of files which somebody else has written."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"{setting}: {str(path)!r} is no image-text-to-text model that can be read ({say(error)})"
        ) from error


@contextmanager
def _without_report() -> Iterator[None]:
    """transformers prints a table of weights that do not fit; here they are an error of one line."""
    logger = logging.getLogger("transformers.modeling_utils")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _check_files(path: Path, setting: str) -> None:
    """UserError names the file of a directory that cannot be what its name says."""
    if path.is_file() or (path / META).is_file():
        refuse(path, setting, "is no model directory; of a checkpoint `ivgr export` makes one")
    if not path.is_dir():
        return
    if (path / "adapter_config.json").exists():
        refuse(path, setting, ADAPTER)
    if not (path / "config.json").exists():
        refuse(path, setting, "is no image-text-to-text model: it holds no config.json")
    weights = sorted(path.glob("model*.safetensors"))
    if not weights and any(path.glob("*.bin")):
        refuse(path, setting, "holds pickled weights, which could run code; save them as safetensors")
    for file in [*weights, *(path / f"{name}.json" for name in SETTINGS)]:
        fault = _fault_of_file(file) if file.exists() else None
        if fault is not None:
            refuse(path, setting, f"cannot be read: {file.name} {fault}")


def _fault_of_file(file: Path) -> str | None:
    try:
        with file.open("rb") as opened:
            if opened.read(len(POINTER)) == POINTER:
                return "is a pointer of Git LFS; fetch what it stands for with `git lfs pull`"
        if file.suffix == ".json":
            return None if isinstance(json.loads(file.read_text("utf-8")), dict) else "holds no JSON object"
        return _fault_of_weights(file)
    except OSError as error:
        return f"cannot be opened ({error.strerror})"
    except Exception as error:  # whatever damaged bytes bring a parser to
        return f"is truncated or damaged ({' '.join(str(error).split())[:120]}); copy it anew"


def fault_of_rotary(model: PreTrainedModel) -> str | None:
    """Transformers finds out in the first pass."""
    rotary: Any = find_family(model.config.model_type).language_model(model).rotary_emb
    if not hasattr(rotary, "mrope_section"):
        return None
    section, found = rotary.mrope_section, len(rotary.inv_freq)
    counts = section if isinstance(section, list) else []
    if len(counts) == 3 and all(type(n) is int and n > 0 for n in counts) and sum(counts) == found:
        return None
    return f"has rope_parameters.mrope_section {section}, not three parts of its {found} rotary frequencies"


def _fault_of_weights(file: Path) -> str | None:
    """Checks the header only, which states how long the file must be."""
    with safe_open(file, "pt") as tensors:
        kinds = {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    for name, kind in kinds.items():
        if name.endswith((".weight", ".bias")) and kind not in ("F64", "F32", "F16", "BF16"):
            return f"holds {name} as {kind}; name a model whose weights are float32, bfloat16 or float16"
    return None


def _count_held(path: Path) -> int:
    """Returns how many numbers the weights in a directory are; 0 if it is none."""
    held = 0
    for file in path.glob("model*.safetensors"):
        with safe_open(file, "pt") as tensors:
            held += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return held


def fault_of_size(held: int, skeleton: PreTrainedModel) -> str | None:
    """Transformers makes whatever config.json describes, by default a model of 72 billion parameters,
    before it finds that the weights are of another."""
    described = sum(weight.numel() for weight in skeleton.parameters())
    if not held or described <= MOST_TIMES * held:
        return None
    return f"describes {described:,} parameters in config.json and holds {held:,}; they must be of one model"


def fault_of_report(report: dict) -> str | None:
    """Returns the fault in transformers' report of loading a model; tied weights and computed buffers are not
    in it."""
    for name, found, wanted in sorted(report["mismatched_keys"]):
        return f"holds {name} of shape {list(found)}, config.json asks for {list(wanted)}"
    missing, other = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    faults = [f"lacks {len(missing)} weights (first {missing[0]})"] if missing else []
    faults += [f"holds {len(other)} that its model has no place for (first {other[0]})"] if other else []
    return " and ".join(faults) or None
