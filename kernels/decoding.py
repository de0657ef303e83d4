"""What stands between the products of a decoder layer, for one token per row: norm, rotary positions, gate.

In: the projections of R rows. Out: what the next product reads. Each rounds where the eager model does, so
that bfloat16 gives what it gives there, but for the order of sums.
"""

# Triton compiles these functions: operators and calls mean what it says they mean.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false

import torch
import triton
import triton.language as tl

BLOCK = 1024  # columns of a program of `gate_product`


def add_norm(
    hidden: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden + delta (R, C), and its RMS norm (arXiv 1910.07467) times weight (C,)."""
    rows, columns = hidden.shape
    total, out = torch.empty_like(hidden), torch.empty_like(hidden)
    _add_norm[(rows,)](
        hidden, hidden if delta is None else delta, weight, total, out, columns, epsilon,
        ADDS=delta is not None, BLOCK=triton.next_power_of_2(columns), num_warps=8,
    )  # fmt: skip
    return total, out


def rotate(
    heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, weight: torch.Tensor | None, epsilon: float
) -> torch.Tensor:
    """Queries or keys `heads` (R, heads, D), each row in one piece, at rotary positions (arXiv 2104.09864) of
    cosine and sine (R, D), after their RMS norm with weight (D,) if there is one."""
    rows, count, size = heads.shape
    out = torch.empty(heads.shape, dtype=heads.dtype, device=heads.device)
    _rotate[(rows, count)](
        heads, heads.stride(0), cosine, sine, heads if weight is None else weight, out, epsilon, count,
        NORMS=weight is not None, SIZE=size, HALF=triton.next_power_of_2(size // 2), num_warps=1,
    )  # fmt: skip
    return out


def gate_product(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate)·up (R, C), whose rows each lie in one piece and are equally far apart."""
    rows, columns = gate.shape
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    _gate_product[(rows, triton.cdiv(columns, BLOCK))](
        gate, up, out, columns, gate.stride(0), up.stride(0), BLOCK=BLOCK, num_warps=4
    )
    return out


@triton.jit
def _add_norm(hidden, delta, weight, total, out, columns, epsilon, ADDS: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    inside = column < columns
    spots = tl.program_id(0).to(tl.int64) * columns + column
    value = tl.load(hidden + spots, mask=inside, other=0.0)
    if ADDS:
        added = value.to(tl.float32) + tl.load(delta + spots, mask=inside, other=0.0).to(tl.float32)
        value = added.to(value.dtype)
    tl.store(total + spots, value, mask=inside)
    wide = value.to(tl.float32)
    normed = (wide * tl.rsqrt(tl.sum(wide * wide, 0) / columns + epsilon)).to(value.dtype)
    scale = tl.load(weight + column, mask=inside, other=0.0)
    tl.store(out + spots, (scale.to(tl.float32) * normed.to(tl.float32)).to(value.dtype), mask=inside)


@triton.jit
def _rotate(
    heads, stride, cosine, sine, weight, out, epsilon, count,
    NORMS: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    half = tl.arange(0, HALF)
    inside = half < SIZE // 2
    given = row * stride + tl.program_id(1) * SIZE + half
    left = (row * count + tl.program_id(1)) * SIZE + half
    right = left + SIZE // 2
    first = tl.load(heads + given, mask=inside, other=0.0)
    second = tl.load(heads + given + SIZE // 2, mask=inside, other=0.0)
    kind = first.dtype
    if NORMS:
        wide, other = first.to(tl.float32), second.to(tl.float32)
        scale = tl.rsqrt((tl.sum(wide * wide, 0) + tl.sum(other * other, 0)) / SIZE + epsilon)
        weigh = tl.load(weight + half, mask=inside, other=0.0).to(tl.float32)
        weigh_other = tl.load(weight + SIZE // 2 + half, mask=inside, other=0.0).to(tl.float32)
        first = (weigh * (wide * scale).to(kind).to(tl.float32)).to(kind)
        second = (weigh_other * (other * scale).to(kind).to(tl.float32)).to(kind)
    first, second = first.to(tl.float32), second.to(tl.float32)
    angle = row * SIZE + half
    cos_left = tl.load(cosine + angle, mask=inside, other=0.0).to(tl.float32)
    cos_right = tl.load(cosine + angle + SIZE // 2, mask=inside, other=0.0).to(tl.float32)
    sin_left = tl.load(sine + angle, mask=inside, other=0.0).to(tl.float32)
    sin_right = tl.load(sine + angle + SIZE // 2, mask=inside, other=0.0).to(tl.float32)
    turned = (first * cos_left).to(kind).to(tl.float32) - (second * sin_left).to(kind).to(tl.float32)
    turned_right = (second * cos_right).to(kind).to(tl.float32) + (first * sin_right).to(kind).to(tl.float32)
    tl.store(out + left, turned.to(kind), mask=inside)
    tl.store(out + right, turned_right.to(kind), mask=inside)


@triton.jit
def _gate_product(gate, up, out, columns, gate_stride, up_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    value = tl.load(gate + row * gate_stride + column, mask=inside, other=0.0)
    wide = value.to(tl.float32)
    active = (wide / (1.0 + tl.exp(-wide))).to(value.dtype)
    other = tl.load(up + row * up_stride + column, mask=inside, other=0.0)
    tl.store(
        out + row * columns + column,
        (active.to(tl.float32) * other.to(tl.float32)).to(value.dtype),
        mask=inside,
    )
