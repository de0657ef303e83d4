"""`ivgr bench decoding`: the kernels of a decoding step beside what stock code launches in their place.

In: a `DecodingSetting`. Out: seconds of each, launched as CUDA graphs turn about, and how far the results lie
apart.
"""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRMSNorm
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb

from ivgr.core.atomic_files import write_json
from ivgr.core.errors import UserError
from ivgr.core.settings import Dtype, PositiveInt, checked, dtype_of
from ivgr.kernels.decoding import add_norm, gate_product, rotate
from ivgr.kernels.paged_attention import PAGE, attend_pages
from ivgr.kernels.prefixes import Prefixes
from ivgr.rollout.cuda_graph import CUDAGraphStep
from ivgr.tools.bench.hardware_limits import copy_bandwidth, run_seconds

LAUNCHES = 20  # of a contender in one CUDA graph, so that the launch of the graph itself weighs little
EPSILON = 1e-6
FAR = 0.05  # bfloat16 rounds by 0.004 of a number at the most


@checked("bench decoding: --setting.")
@dataclass(frozen=True)
class DecodingSetting:
    """One layer of a decoding step; the defaults are Qwen2-VL-7B's.

    Args:
        queries: Prefixes that are attended to.
        siblings: Branches of each.
        prefix: Tokens of a prefix.
        own: Tokens of a branch, of which the last is new.
        heads: Heads of keys and values.
        group: Query heads to each.
        size: Numbers of a head.
        hidden: Width of the hidden states.
        intermediate: Width of the gate.
        dtype: Of all tensors.
    """

    queries: PositiveInt = 8
    siblings: PositiveInt = 10
    prefix: PositiveInt = 2560
    own: PositiveInt = 300
    heads: PositiveInt = 4
    group: PositiveInt = 7
    size: PositiveInt = 128
    hidden: PositiveInt = 3584
    intermediate: PositiveInt = 18_944
    dtype: Dtype = "bfloat16"

    @property
    def branches(self) -> int:
        return self.queries * self.siblings


@dataclass(frozen=True)
class DecodingTiming:
    """seconds, stock_seconds: medians of one launch; floor: seconds for the bytes that the kernel must read
    and write, at the speed of a large copy; apart: the largest difference between the two results, as a
    share of 1 + |stock|."""

    seconds: float
    stock_seconds: float
    floor: float
    apart: float


@dataclass(frozen=True)
class Pair:
    """A kernel, what is stock in its place, and the bytes that must pass through memory."""

    ours: Callable[[], torch.Tensor]
    stock: Callable[[], torch.Tensor]
    bytes: int


@checked("bench decoding: --")
def decoding(
    setting: DecodingSetting = DecodingSetting(), repeats: PositiveInt = 5, json: Path | None = None
) -> None:
    """Time the kernels of a decoding step, on a GPU, beside SDPA and the stock modules of transformers.

    Exit code 1 if results differ by more than rounding.

    Args:
        setting: Shapes.
        repeats: Rounds; medians are reported.
        json: File for the figures.
    """
    if not torch.cuda.is_available():
        raise UserError("bench decoding times Triton's kernels, which need a GPU, and there is none here")
    figures = decoding_figures(setting, repeats)
    table = Table("", "µs", "stock µs", "stock, × ours", "× floor", "apart")
    for name, one in figures.items():
        times = f"{one.seconds * 1e6:.1f}", f"{one.stock_seconds * 1e6:.1f}"
        ratios = f"{one.stock_seconds / one.seconds:.2f}", f"{one.seconds / one.floor:.2f}"
        table.add_row(name, *times, *ratios, f"{one.apart:.2g}")
    Console().print(table)
    if json is not None:
        kernels = {name: asdict(one) for name, one in figures.items()}
        write_json(json, {"setting": asdict(setting), "kernels": kernels})
    if far := [name for name, one in figures.items() if not one.apart <= FAR]:
        print(f"not what the stock code gives: {', '.join(far)}")
        raise SystemExit(1)


@torch.no_grad()
def decoding_figures(setting: DecodingSetting, repeats: int) -> dict[str, DecodingTiming]:
    """All kernels with what is stock in their place, turn about."""
    device = torch.device("cuda")
    bandwidth = copy_bandwidth(torch.zeros(2**28, dtype=torch.uint8, device=device), repeats + 2)
    return {
        name: _time(pair, device, bandwidth, repeats)
        for name, pair in decoding_pairs(setting, device).items()
    }


def _time(pair: Pair, device: torch.device, bandwidth: float, repeats: int) -> DecodingTiming:
    ours, stock = pair.ours().float(), pair.stock().float()
    apart = ((ours - stock).abs() / (1 + stock.abs())).max().item()
    runs = [partial(CUDAGraphStep(), partial(_launch, one)) for one in (pair.ours, pair.stock)]
    for run in runs:
        run()  # captures
    rounds = [[run_seconds(run, device) / LAUNCHES for run in runs] for _ in range(repeats)]
    seconds, stock_seconds = map(statistics.median, zip(*rounds, strict=True))
    return DecodingTiming(seconds, stock_seconds, pair.bytes / bandwidth, apart)


def _launch(run: Callable[[], torch.Tensor]) -> torch.Tensor:
    for _ in range(LAUNCHES - 1):
        run()
    return run()


def decoding_pairs(setting: DecodingSetting, device: torch.device) -> dict[str, Pair]:
    """Every kernel by name, on random tensors."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        drawn = torch.randn(*shape, generator=generator, device=device)
        return drawn.to(dtype_of(setting.dtype))

    return {
        "attention": _attention(setting, draw),
        "sum and norm": _norm(setting, draw),
        "rotary positions": _rotary(setting, draw),
        "gate": _gate(setting, draw),
    }


def _attention(setting: DecodingSetting, draw: Callable[..., torch.Tensor]) -> Pair:
    """Over a shared prefix and pages, and over a copy of both for every branch."""
    branches, heads, size, own = setting.branches, setting.heads, setting.size, setting.own
    query = draw(branches, heads, setting.group, size)
    shared = [draw(setting.queries, heads, setting.prefix, size) for _ in range(2)]
    mine = [draw(branches, heads, own, size) for _ in range(2)]
    each = -(-own // PAGE)
    pages = [_in_pages(one, each) for one in mine]
    table = torch.arange(branches * each, dtype=torch.int32, device=query.device).view(branches, each)
    news = [one[:, :, -1].contiguous() for one in mine]
    position = torch.full((branches,), own - 1, device=query.device)
    prefixes, scaling = _prefixes(setting, *shared), size**-0.5
    whole = [
        torch.cat([part.repeat_interleave(setting.siblings, 0), one], 2)
        for part, one in zip(shared, mine, strict=True)
    ]
    stacked = query.reshape(branches, heads * setting.group, 1, size)

    def ours() -> torch.Tensor:
        return attend_pages(query, news[0], news[1], (pages[0], pages[1]), table, position, prefixes, scaling)

    def stock() -> torch.Tensor:
        out = scaled_dot_product_attention(stacked, whole[0], whole[1], scale=scaling, enable_gqa=True)
        return out.view_as(query)

    return Pair(ours, stock, sum(one.nbytes for one in (*shared, *mine)) + 2 * query.nbytes)


def _in_pages(own: torch.Tensor, each: int) -> torch.Tensor:
    """own (R, H, L, D) in pages (R · each, H, PAGE, D), a branch's one after the other."""
    branches, heads, length, size = own.shape
    room = own.new_zeros(branches, heads, each * PAGE, size)
    room[:, :, :length] = own
    return room.view(branches, heads, each, PAGE, size).transpose(1, 2).reshape(-1, heads, PAGE, size)


def _prefixes(setting: DecodingSetting, keys: torch.Tensor, values: torch.Tensor) -> Prefixes:
    """Each seen whole by its siblings."""
    number = torch.arange(setting.branches, device=keys.device)
    return Prefixes(
        keys,
        values,
        table=number.view(setting.queries, setting.siblings),
        bias=torch.zeros(setting.queries, setting.siblings, setting.prefix, device=keys.device),
        prefix_of=number // setting.siblings,
        column=number % setting.siblings,
    )


def _norm(setting: DecodingSetting, draw: Callable[..., torch.Tensor]) -> Pair:
    hidden, delta = draw(setting.branches, setting.hidden), draw(setting.branches, setting.hidden)
    module: Any = Qwen2VLRMSNorm(setting.hidden, EPSILON)
    module.weight.data = draw(setting.hidden)
    weight = module.weight
    return Pair(
        lambda: add_norm(hidden, delta, weight, EPSILON)[1],
        lambda: module(hidden + delta),
        4 * hidden.nbytes + weight.nbytes,
    )


def _rotary(setting: DecodingSetting, draw: Callable[..., torch.Tensor]) -> Pair:
    """Of the queries."""
    heads = draw(setting.branches, setting.heads * setting.group, setting.size)
    cosine, sine = (draw(setting.branches, setting.size) for _ in range(2))
    return Pair(
        lambda: rotate(heads, cosine, sine, None, EPSILON),
        lambda: apply_rotary_pos_emb(heads, heads[:, :0], cosine, sine)[0],
        2 * heads.nbytes + 2 * cosine.nbytes,
    )


def _gate(setting: DecodingSetting, draw: Callable[..., torch.Tensor]) -> Pair:
    gate, up = draw(setting.branches, setting.intermediate), draw(setting.branches, setting.intermediate)
    return Pair(lambda: gate_product(gate, up), lambda: silu(gate) * up, 3 * gate.nbytes)
