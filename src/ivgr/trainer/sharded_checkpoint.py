"""Sharded checkpoints: a folder in which every rank writes its shard of the weights and of the
optimizer's moments as safetensors, and rank 0 the rest as meta.pt. It holds no pickled code, and
any number of ranks can read it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import Placement, Replicate, Shard, zeros
from torch.optim import Optimizer

from ivgr.core.checkpoint_file import MEND, META, read_checkpoint, refuse_misshapen
from ivgr.core.errors import UserError
from ivgr.core.finite import find_not_finite
from ivgr.core.sharding import is_sharded
from ivgr.core.state_dict import refuse_other_policy, shapes_of
from ivgr.distributed.collectives import gather_lists
from ivgr.trainer.resume import LAYOUT, layout_of, refuse_other_layout

WEIGHT, MOMENT = "weight", "moment"
# The shape of what rank 0 writes about the optimizer.
STATE = {"groups": [dict], "small": {str: object}, "dims": {str: [int | None]}, f"{LAYOUT}?": str}


def write_folder(path: Path, module: nn.Module, optimizer: Optimizer | None, rest: dict, rank: int) -> None:
    """Writes weights, optimizer and `rest` (plain data); all ranks must call it."""
    path.mkdir(parents=True, exist_ok=True)
    tensors = {f"{WEIGHT}.{name}": weight.detach() for name, weight in module.named_parameters()}
    moments, rest = {}, dict(rest)
    if optimizer is not None:
        moments = _moments(module, optimizer)
        rest["optimizer"] = {
            "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
            "small": {name: value for name, value in moments.items() if not is_sharded(value)},
            "dims": {name: _dims(value.placements) for name, value in moments.items() if is_sharded(value)},
            LAYOUT: layout_of(moments.items()),
        }
    tensors |= {name: value for name, value in moments.items() if is_sharded(value)}
    dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(path), save_distributed=True))
    if rank == 0:
        torch.save(rest, path / META)


def read_folder(
    path: Path, module: nn.Module, optimizer: Optimizer | None, admit: Callable[[dict], None]
) -> dict:
    """Fills weights and optimizer in place; returns the rest. All ranks must call it. UserError if the
    files are damaged, the weights belong to another model, or `admit` refuses the rest."""
    rest = read_checkpoint(path, whole=True)
    admit(rest)
    reader = HuggingFaceStorageReader(str(path))
    stored = _stored_in(reader, path)
    tensors = {f"{WEIGHT}.{name}": weight.detach() for name, weight in module.named_parameters()}
    start = f"{WEIGHT}."
    sizes = {name.removeprefix(start): found.size for name, found in stored.items() if name.startswith(start)}
    refuse_other_policy(shapes_of(dict(module.named_parameters())), sizes, path)
    state = rest.pop("optimizer", None)
    if optimizer is not None:
        tensors |= _restore(module, optimizer, state, stored, path)
    dcp.load(tensors, storage_reader=reader)
    odd = gather_lists([find_not_finite(tensors.items())])
    if (name := next(filter(None, odd), None)) is not None:
        raise UserError(
            f"checkpoint {path}: numbers of it are not finite (first in {name}); use an earlier one"
        )
    return rest


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Reads the whole weights of a sharded checkpoint by name, in one process; tied weights under one
    name."""
    reader = HuggingFaceStorageReader(str(path))
    tensors = {
        name: torch.empty(found.size, dtype=found.properties.dtype)
        for name, found in _stored_in(reader, path).items()
        if name.startswith(f"{WEIGHT}.")
    }
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return {name.removeprefix(f"{WEIGHT}."): tensor for name, tensor in tensors.items()}


def _stored_in(reader: HuggingFaceStorageReader, path: Path) -> dict:
    """Returns the metadata of each tensor by name; UserError names a file that is damaged."""
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"checkpoint {path}: {file.name} is truncated or damaged ({error}); {MEND}"
            ) from error
    try:
        return reader.read_metadata().state_dict_metadata
    except Exception as error:  # whatever missing or foreign files bring the reader to
        raise UserError(
            f"checkpoint {path}: its files of tensors do not belong together ({error}); {MEND}"
        ) from error


def _moments(module: nn.Module, optimizer: Optimizer) -> dict[str, object]:
    """Returns the tensors that the optimizer keeps per parameter, by moment.PARAMETER/FIELD."""
    return {
        f"{MOMENT}.{name}/{field}": value
        for name, weight in module.named_parameters()
        for field, value in optimizer.state.get(weight, {}).items()
    }


def _restore(
    module: nn.Module, optimizer: Optimizer, state: Any, stored: dict, path: Path
) -> dict[str, torch.Tensor]:
    """Restores the optimizer's groups and small state and allocates its moments; returns the moments.
    UserError if they do not belong to the parameters that are trained."""
    refuse_misshapen({"optimizer": state}, {"optimizer": STATE}, path)
    for group, saved in zip(optimizer.param_groups, state["groups"], strict=True):
        group.update(saved)
    weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    names = {key: key.removeprefix(f"{MOMENT}.").rpartition("/") for key in [*state["small"], *state["dims"]]}
    alien = next((key for key, (name, _, _) in names.items() if name not in weights), None)
    lost = {key for key in stored if key.startswith(f"{MOMENT}.")} ^ state["dims"].keys()
    if alien or lost:
        raise UserError(
            f"checkpoint {path}: its optimizer trains other parameters (first {alien or min(lost)}); resume "
            "with the model.trainable and model.update.optimizer.name it was made with"
        )
    room = {}
    optimizer.state.clear()
    for key, (name, _, field) in names.items():
        weight: Any = weights[name]
        value = state["small"].get(key)
        if key in state["dims"]:
            placements = _placements(state["dims"][key])
            value = room[key] = zeros(
                *stored[key].size, dtype=weight.dtype, device_mesh=weight.device_mesh, placements=placements
            )
        optimizer.state[weight][field] = value
    refuse_other_layout(_moments(module, optimizer).items(), state.get(LAYOUT), path)
    return room


def _dims(placements: tuple[Placement, ...]) -> list[int | None]:
    """Returns the dimension that is sharded along each axis of the mesh; None for an axis without one."""
    return [placement.dim if isinstance(placement, Shard) else None for placement in placements]


def _placements(dims: list[int | None]) -> list[Placement]:
    return [Replicate() if dim is None else Shard(dim) for dim in dims]
