"""Weights that are read from a model directory's files straight to where they are used.

In: a directory in HF format. Out: its model on the meta device, and the place of every weight in the files,
checked by their headers. `StoredWeights.fill` then reads each weight onto its device, and of a split one only
this rank's rows: no process holds a whole model on the host.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
from transformers.utils import (
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
    find_adapter_config_file,
)
from transformers.utils.hub import get_checkpoint_shard_files

from ivgr.core.finite import find_not_finite
from ivgr.models.model_directory import (
    ADAPTER,
    MIXED,
    NOT_FINITE,
    fault_of_report,
    fault_of_rotary,
    fault_of_size,
    read_model,
    reading,
    refuse,
)
from ivgr.models.skeleton import build_skeleton, compute_buffers, replace_parameters

# Bytes that are read at a time, so that what is to be converted to another dtype takes little memory.
BLOCK = 1 << 26


class Place(NamedTuple):
    """Where a tensor is stored: the file, its name there, and its shape."""

    file: str
    key: str
    shape: tuple[int, ...]


class StoredWeights:
    """The weights of a model directory, in its files.

    Args:
        path: The directory or hub id, and `setting`, which names it: both for errors.
        places: Where each tensor is stored, by its name in the model without adapters.
    """

    def __init__(self, path: Path | str, setting: str, places: dict[str, Place]) -> None:
        self.path = path
        self.setting = setting
        self.places = places

    @torch.no_grad()
    def fill(self, model: PreTrainedModel, device: torch.device) -> None:
        """Reads every weight of `model` that is on the meta device, of a split one this rank's rows, onto
        `device`, and moves the rest there; UserError if a file cannot be read or a number is not finite."""
        named = {name.replace(".base_layer.", "."): weight for name, weight in model.named_parameters()}
        with reading(self.path, self.setting), self._opened() as stored:
            replace_parameters(
                model,
                {
                    id(weight): _read(stored(name), weight, device)
                    for name, weight in named.items()
                    if weight.is_meta
                },
            )
            model.to(device)  # pyright: ignore[reportArgumentType]  transformers wraps it
        if (name := find_not_finite(model.named_parameters())) is not None:
            refuse(self.path, self.setting, NOT_FINITE.format(name))

    def fill_buffers(self, model: PreTrainedModel) -> None:
        """Reads the buffers of `model` that its directory holds."""
        with self._opened() as stored:
            for name, buffer in model.named_buffers():
                if name in self.places:
                    buffer.copy_(stored(name)[...])

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors of one shape have the same numbers."""
        with self._opened() as stored:
            first, second = stored(one), stored(other)
            return all(torch.equal(first[rows], second[rows]) for rows in _blocks(self.places[one].shape))

    @contextmanager
    def _opened(self) -> Iterator[Callable[[str], Any]]:
        """Lends a function that gives safetensors' slice of a tensor by its name in the model."""
        with ExitStack() as stack:
            open_once = cache(lambda file: stack.enter_context(safe_open(file, "pt")))
            yield lambda name: open_once(self.places[name].file).get_slice(self.places[name].key)


def read_skeleton(
    path: Path | str, config: PreTrainedConfig, dtype: torch.dtype, attn_implementation: str, setting: str
) -> tuple[PreTrainedModel, StoredWeights | None]:
    """The model of `config` on the meta device and where its weights are stored in `path`; UserError names
    those that are missing, left over or of another shape. Where transformers computes weights from what is
    stored, such as a stack of experts, the model is read whole, and there is nothing left to read."""
    with reading(path, setting):
        if find_adapter_config_file(str(path)) is not None:
            refuse(path, setting, ADAPTER)
        held = _list_tensors(path)
        model = build_skeleton(config, dtype, attn_implementation)
        fault = fault_of_size(sum(math.prod(place.shape) for place in held.values()), model)
    if fault is not None:
        refuse(path, setting, fault)
    with reading(path, setting):
        named = _name_in_model(held, model)
        if named is None:
            return read_model(path, config, dtype, attn_implementation, setting), None
        weights = StoredWeights(path, setting, named)
        fault = fault_of_report(_report(model, named))
        rotary = fault_of_rotary(model)
    if fault is not None:
        refuse(path, setting, f"{fault}; {MIXED}")
    if rotary is not None:
        refuse(path, setting, rotary)
    with reading(path, setting):
        _tie(model, weights)
        compute_buffers(model)
        weights.fill_buffers(model)
        _configure(model, path)
    return model.eval(), weights


def _read(stored: Any, weight: nn.Parameter, device: torch.device) -> nn.Parameter:
    """Reads this rank's part of `weight`, all of it if it is not split, in the dtype of `weight`."""
    if not isinstance(weight, DTensor):
        return nn.Parameter(_copy(stored, (0,) * weight.dim(), weight, device), weight.requires_grad)
    local = weight.to_local()
    (chunk,) = weight.__create_chunk_list__()
    part = DTensor.from_local(
        _copy(stored, chunk.offsets, local, device),
        weight.device_mesh,
        weight.placements,
        run_check=False,
        shape=weight.shape,
        stride=weight.stride(),
    )
    return nn.Parameter(part, weight.requires_grad)


def _copy(stored: Any, offsets: tuple[int, ...], like: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Reads the part of a stored tensor that begins at `offsets` and has the shape and dtype of `like`."""
    part = torch.empty_like(like, device=device)
    if not part.dim():
        return part.copy_(stored[...])
    others = tuple(slice(first, first + size) for first, size in zip(offsets, part.shape, strict=True))[1:]
    for rows in _blocks(part.shape):
        own = slice(offsets[0] + rows.start, offsets[0] + rows.stop)
        part[rows].copy_(stored[(own, *others)].to(device))  # whose dtype then changes there, not on the host
    return part


def _blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yields the rows of a tensor, about BLOCK bytes of float32 at a time."""
    step = max(1, BLOCK // max(1, 4 * math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def _list_tensors(path: Path | str) -> dict[str, Place]:
    """Reads the headers of the files that hold the model's weights; those of the hub are fetched first."""
    one, index = _find_file(path, SAFE_WEIGHTS_NAME), _find_file(path, SAFE_WEIGHTS_INDEX_NAME)
    if one is None and index is None:
        raise FileNotFoundError(f"no file named {SAFE_WEIGHTS_NAME} or {SAFE_WEIGHTS_INDEX_NAME}")
    files = [one] if one else get_checkpoint_shard_files(path, index)[0]
    held = {}
    for file in files:  # pyright: ignore[reportOptionalIterable]
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                held[key] = Place(str(file), key, tuple(tensors.get_slice(key).get_shape()))
    return held


def _name_in_model(held: dict[str, Place], model: PreTrainedModel) -> dict[str, Place] | None:
    """Returns stored tensors by their names in `model`, as transformers renames them when it loads a model;
    None if it computes a weight from them."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    own, prefix, named = model.state_dict(), model.base_model_prefix, {}
    for key in sorted(held, key=dot_natural_key):
        name, converted = rename_source_key(key, renamings, converters, prefix, own)
        if name not in own and key in own:
            name, converted = rename_source_key(key, [], [], prefix, own)
        if converted is not None:
            return None
        named.setdefault(name, held[key])
    # By these, `save_pretrained` gives weights the names back that they had.
    model._weight_conversions = [entry for entry in mapping if entry.was_used()]  # pyright: ignore[reportArgumentType]
    return named


def _report(model: PreTrainedModel, named: dict[str, Place]) -> dict[str, set]:
    """Returns what transformers would report of loading `model`."""
    own = model.state_dict()
    missing = {name for names in _names_by_tensor(model) if not named.keys() & names for name in names}
    info = SimpleNamespace(missing_keys=missing, unexpected_keys=named.keys() - own.keys())
    model._adjust_missing_and_unexpected_keys(info)  # pyright: ignore[reportArgumentType]
    odd = {
        (name, place.shape, tuple(own[name].shape))
        for name, place in named.items()
        if name in own and place.shape != tuple(own[name].shape)
    }
    return {"mismatched_keys": odd, "missing_keys": missing, "unexpected_keys": info.unexpected_keys}


def _tie(model: PreTrainedModel, weights: StoredWeights) -> None:
    """Keeps weights tied that are stored once or alike, and unties, as transformers does, those of which
    several are stored that differ."""
    places = weights.places
    for names in _names_by_tensor(model):
        stored = [name for name in names if name in places]
        for name in stored[1:]:
            if not weights.equal(stored[0], name):
                owner, _, leaf = name.rpartition(".")
                empty = torch.empty_like(model.get_parameter(name))
                setattr(model.get_submodule(owner), leaf, nn.Parameter(empty))
                model.all_tied_weights_keys.pop(name, None)
        for name in names:
            places.setdefault(name, places[stored[0]])


def _names_by_tensor(model: PreTrainedModel) -> list[list[str]]:
    """Returns the names of each tensor that a checkpoint of `model` holds; several if it is tied."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return list(names.values())


def _configure(model: PreTrainedModel, path: Path | str) -> None:
    """Reads how the model generates, if its directory says it."""
    model.config.name_or_path = model.name_or_path = str(path)
    if _find_file(path, GENERATION_CONFIG_NAME) is not None:
        model.generation_config = GenerationConfig.from_pretrained(path)


def _find_file(path: Path | str, name: str) -> str | None:
    """Returns where a file of the directory or hub id is on this machine, if there is one."""
    return cached_file(path, name, _raise_exceptions_for_missing_entries=False)
