"""`ivgr bench kernels`: log-prob and KL by several roads on the same tensors, and how near
each comes to what this machine can copy and multiply.

In: a `KernelSetting`. Out: a `Ceiling` and a `KernelTiming` for every case and contender.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Literal

import torch

from ivgr.core.errors import UserError, install_hint
from ivgr.core.settings import Device, Dtype, PositiveInt, checked, dtype_of
from ivgr.tools.bench.hardware_limits import copy_bandwidth, gemm_rate, run_seconds
from ivgr.tools.bench.implementations import LINEAR, LOGITS, Implementation, Inputs, available
from ivgr.tools.bench.measure import live_bytes

# A logit's scale, maximum, subtract, exp and sum; its scale, subtract, exp and two products back.
FORWARD_FLOPS, BACKWARD_FLOPS = 5, 5


@checked("bench kernels: --setting.")
@dataclass(frozen=True)
class KernelSetting:
    """tokens N, vocabulary V, hidden H; kl "k3" or "exact"; device and dtype of all tensors."""

    tokens: PositiveInt = 2048
    vocabulary: PositiveInt = 32_000
    hidden: PositiveInt = 1536
    kl: Literal["k3", "exact"] = "k3"
    device: Device = "cpu"
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"bench kernels --setting.device is {self.device!r}, but there is no GPU here")


@dataclass(frozen=True)
class Ceiling:
    """The limits of this machine: bytes copied (read and written) and GEMM FLOP per second."""

    copy: float
    gemm: float


@dataclass(frozen=True)
class KernelTiming:
    """seconds: median; floor: seconds at the ceiling for the least work of this road, `bytes`
    through memory or `flops` of GEMM; extra_bytes: the most that tensors held above the start,
    less the gradients of inputs and weights (also where these came after the peak)."""

    case: str
    road: str
    seconds: float
    bytes: int
    flops: int
    floor: float
    extra_bytes: int


def kernel_figures(setting: KernelSetting, repeats: int) -> tuple[Ceiling, list[KernelTiming]]:
    """Every case by every road that this machine has, turn about, after a run for memory."""
    device = torch.device(setting.device)
    ceiling = _ceiling(setting, repeats)
    inputs = Inputs.draw(setting.tokens, setting.vocabulary, setting.hidden, device, setting.dtype)
    figures = []
    for form, roads in (("logits", LOGITS), ("linear", LINEAR)):
        if form == "logits":
            inputs.make_logits()
        for backward in (False, True):
            chosen = {
                name: road
                for name, road in roads.items()
                if available(road, device, setting.kl) and (backward or road.forward)
            }
            figures += _case(setting, form, chosen, inputs, backward, repeats, ceiling)
        inputs.drop_logits()
    return ceiling, figures


def missing_roads(setting: KernelSetting) -> Iterator[str]:
    """A line for each road that is not measured here, and why."""
    device = torch.device(setting.device)
    gpu_only = [name for name, road in LOGITS.items() if road.gpu_only and device.type != "cuda"]
    if gpu_only:
        yield f"not measured without a GPU: {', '.join(gpu_only)}"
    for name, road in LOGITS.items():
        if name in gpu_only:
            continue
        if road.needs is not None and find_spec(road.needs) is None:
            yield f"not measured, since not installed: {name} ({install_hint('bench')})"
        elif setting.kl == "exact" and not road.exact:
            yield f"not measured, since it has no exact KL: {name}"


def _case(
    setting: KernelSetting,
    form: str,
    roads: dict[str, Implementation],
    inputs: Inputs,
    backward: bool,
    repeats: int,
    ceiling: Ceiling,
) -> Iterator[KernelTiming]:
    device = torch.device(setting.device)
    runs = {name: partial(_run, road, inputs, setting.kl, backward) for name, road in roads.items()}
    extra = {name: _extra_bytes(run, device) for name, run in runs.items()}
    times = [{name: run_seconds(run, device) for name, run in runs.items()} for _ in range(repeats)]
    for name, road in roads.items():
        seconds = statistics.median(turn[name] for turn in times)
        moved, flops = _work(setting, form, road, backward)
        floor = moved / ceiling.copy if form == "logits" else flops / ceiling.gemm
        case = f"{form} fwd{'+bwd' if backward else ''}"
        yield KernelTiming(case, name, seconds, moved, flops, floor, extra[name])


def _run(road: Implementation, inputs: Inputs, kl: str, backward: bool) -> int:
    """One run; returns the bytes of the gradients it left."""
    leaves = inputs.leaves(road)
    with torch.set_grad_enabled(backward):
        loss = road.loss(inputs, leaves, kl).sum()
    if backward:
        loss.backward()
    return sum(leaf.grad.nbytes for leaf in leaves if leaf.grad is not None)


def _extra_bytes(run: Callable[[], int], device: torch.device) -> int:
    if device.type == "cuda":
        run()  # compiles, and tries out what it compiled
    with live_bytes(device) as peak:
        gradients = run()
    return peak() - gradients


def _ceiling(setting: KernelSetting, repeats: int) -> Ceiling:
    """Copies and GEMMs of the setting's own tensors' size."""
    device, dtype = torch.device(setting.device), dtype_of(setting.dtype)
    rows = min(setting.tokens, 2**30 // (setting.vocabulary * dtype.itemsize) + 1)
    hidden = torch.randn(rows, setting.hidden, device=device, dtype=dtype)
    weight = torch.randn(setting.vocabulary, setting.hidden, device=device, dtype=dtype)
    logits = torch.zeros(rows, setting.vocabulary, device=device, dtype=dtype)
    return Ceiling(copy_bandwidth(logits, repeats + 2), gemm_rate(hidden, weight.T, repeats + 2))


def _work(setting: KernelSetting, form: str, road: Implementation, backward: bool) -> tuple[int, int]:
    """The least bytes through memory and the least FLOP that an implementation needs."""
    itemsize = dtype_of(setting.dtype).itemsize
    count = setting.tokens * setting.vocabulary
    if form == "logits":
        passes = 2 + backward * (2 if setting.kl == "k3" else 3)
        return passes * count * itemsize, (2 * FORWARD_FLOPS + backward * BACKWARD_FLOPS) * count
    gemms = 2
    if backward:
        gemms = 4 + road.recomputes * (1 if setting.kl == "k3" else 2)
    matrices = setting.vocabulary + setting.tokens
    return gemms * matrices * setting.hidden * itemsize, gemms * 2 * count * setting.hidden
