"""The limits of this machine: the speed of a large copy and of a large GEMM."""

import time
from collections.abc import Callable
from functools import partial

import torch


def run_seconds(run: Callable[[], object], device: torch.device) -> float:
    """Seconds that `run` keeps the device busy."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    before = time.perf_counter()
    run()
    return time.perf_counter() - before


def copy_bandwidth(source: torch.Tensor, runs: int) -> float:
    """Returns bytes per second of the best copy of `source`; each byte counts when read and when written."""
    copy = partial(torch.empty_like(source).copy_, source)
    return 2 * source.nbytes / min(run_seconds(copy, source.device) for _ in range(runs))


def gemm_rate(left: torch.Tensor, right: torch.Tensor, runs: int) -> float:
    """Returns the FLOP per second of the best product of left (M, K) and right (K, N)."""
    product = partial(torch.mm, left, right, out=left.new_empty(len(left), right.shape[1]))
    best = min(run_seconds(product, left.device) for _ in range(runs))
    return 2 * left.numel() * right.shape[1] / best
