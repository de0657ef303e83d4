"""Ranks that talk to each other by gloo, without a trainer."""

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


def on_ranks(check: Callable[[DeviceMesh], object], folder: Path, ranks: int = 2) -> None:
    """Runs `check(mesh)` on each rank; fails where one of them does, or does not end."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["ivgr.rollout.transformers_engine", "ivgr.trainer.fsdp_strategy"])
    processes = [context.Process(target=_meet, args=(rank, ranks, folder, check)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * ranks


def _meet(rank: int, ranks: int, folder: Path, check: Callable[[DeviceMesh], object]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    check(init_device_mesh("cpu", (ranks,), mesh_dim_names=("data_parallel",)))
    dist.destroy_process_group()
