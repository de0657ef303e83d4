"""A sharded checkpoint: a folder in which every rank writes its part of the weights and of the
optimizer's moments as safetensors, and rank 0 the rest as meta.pt. Nothing in it is a pickle
that could run code; any number of ranks can read it.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, zeros
from torch.optim import Optimizer

from ivgr.policy.load import refuse_other_policy, shapes_of

META = "meta.pt"
WEIGHT, MOMENT = "weight", "moment"


def write_folder(path: Path, module: nn.Module, optimizer: Optimizer | None, rest: dict, rank: int) -> None:
    """Writes weights, optimizer and `rest` (plain data); all ranks must call it."""
    path.mkdir(parents=True, exist_ok=True)
    tensors = {f"{WEIGHT}.{name}": weight.detach() for name, weight in module.named_parameters()}
    moments, rest = {}, dict(rest)
    if optimizer is not None:
        moments = {f"{MOMENT}.{name}": value for name, value in _moments(module, optimizer)}
        rest["optimizer"] = {
            "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
            "small": {name: value for name, value in moments.items() if not isinstance(value, DTensor)},
            "dims": {
                name: _dims(value.placements) for name, value in moments.items() if isinstance(value, DTensor)
            },
        }
    tensors |= {name: value for name, value in moments.items() if isinstance(value, DTensor)}
    dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(path), save_distributed=True))
    if rank == 0:
        torch.save(rest, path / META)


def read_folder(path: Path, module: nn.Module, optimizer: Optimizer | None) -> dict:
    """Fills weights and optimizer in place; returns the rest. All ranks must call it. UserError if
    the weights are another model's."""
    rest = torch.load(path / META, map_location="cpu", weights_only=True)
    reader = HuggingFaceStorageReader(str(path))
    stored = {name: found.size for name, found in reader.read_metadata().state_dict_metadata.items()}
    tensors = {f"{WEIGHT}.{name}": weight.detach() for name, weight in module.named_parameters()}
    start = f"{WEIGHT}."
    sizes = {name.removeprefix(start): size for name, size in stored.items() if name.startswith(start)}
    refuse_other_policy(shapes_of(dict(module.named_parameters())), sizes)
    state = rest.pop("optimizer", None)
    if optimizer is not None and state is not None:
        tensors |= _restore(module, optimizer, state, stored)
    dcp.load(tensors, storage_reader=reader)
    return rest


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The whole weights of a sharded checkpoint by name, in one process; of tied ones one name."""
    reader = HuggingFaceStorageReader(str(path))
    stored = reader.read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(found.size, dtype=found.properties.dtype)
        for name, found in stored.items()
        if name.startswith(f"{WEIGHT}.")
    }
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return {name.removeprefix(f"{WEIGHT}."): tensor for name, tensor in tensors.items()}


def _moments(module: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, object]]:
    """What the optimizer keeps of each parameter, by PARAMETER/FIELD."""
    for name, weight in module.named_parameters():
        for field, value in optimizer.state.get(weight, {}).items():
            yield f"{name}/{field}", value


def _restore(module: nn.Module, optimizer: Optimizer, state: dict, stored: dict) -> dict[str, torch.Tensor]:
    """Gives the optimizer its groups and small state, and room for its moments; returns the latter."""
    for group, saved in zip(optimizer.param_groups, state["groups"], strict=True):
        group.update(saved)
    weights, room = dict(module.named_parameters()), {}
    optimizer.state.clear()
    for key in [*state["small"], *state["dims"]]:
        name, _, field = key.removeprefix(f"{MOMENT}.").rpartition("/")
        weight = weights[name]
        if key in state["dims"]:
            placements = _placements(state["dims"][key])
            value = zeros(
                *stored[key], dtype=weight.dtype, device_mesh=weight.device_mesh, placements=placements
            )
            room[key] = value
        else:
            value = state["small"][key]
        optimizer.state[weight][field] = value
    return room


def _dims(placements: tuple[Placement, ...]) -> list[int | None]:
    """The dimension split along each axis of the mesh, None where there is none."""
    return [placement.dim if isinstance(placement, Shard) else None for placement in placements]


def _placements(dims: list[int | None]) -> list[Placement]:
    return [Replicate() if dim is None else Shard(dim) for dim in dims]
