"""Sharded checkpoints, written and read by one process that is a group of its own."""

import lightning
import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ivgr.core.errors import UserError
from ivgr.trainer.sharded_checkpoint import read_folder, write_folder

# What else a checkpoint must hold.
REST = {"ivgr": {}, "pytorch-lightning_version": lightning.__version__, "epoch": 0, "global_step": 1}


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def split(mesh) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A module that has been trained for one step."""
    torch.manual_seed(0)
    module = fully_shard(nn.Linear(4, 3), mesh=mesh)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return module, optimizer


def poison(folder, key: str, value: float) -> None:
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        if key in tensors:
            tensors[key].flatten()[-1] = value
            save_file(tensors, file, metadata=metadata_of(file))
            return
    raise AssertionError(f"no file holds {key}")


def metadata_of(file) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["weight.bias", "moment.weight/exp_avg_sq"])
def test_numbers_that_are_not_finite_are_refused(alone, tmp_path, key, value):
    folder = tmp_path / "iteration-000001.ckpt"
    write_folder(folder, *split(alone), REST, 0)
    module, optimizer = split(alone)
    read_folder(folder, module, optimizer, lambda rest: None)  # as it was saved, it is read
    poison(folder, key, value)
    with pytest.raises(UserError, match=f"not finite.*{key}"):
        read_folder(folder, module, optimizer, lambda rest: None)
