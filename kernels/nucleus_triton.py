"""Sampling from the nucleus of a whole vocabulary without sorting it, one program per row; needs triton.

With G(v) the probability of all tokens above v, the nucleus ends in the smallest v that has
G(v) < top_p; with T its total, a draw u from [0, 1) falls on the smallest v that has
G(v) <= u T. Positive floats rise as their bits do, so both are found digit by digit, in
DIGITS passes over the row. Of tokens that are as likely as each other, the first come first:

    kept = the least n with G(v) + n v >= top_p,   rank = the least n with G(v) + n v > u T.

Sums are in fp64, where those of fp32 probabilities over 2^-30 are exact in any order.
"""

# Triton compiles these functions: operators and calls mean what it says they mean.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl

# A probability's bits are below 2^30, which makes fifteen digits of two bits.
DIGITS, HIGHEST = tl.constexpr(15), tl.constexpr(1 << 28)
EPSILON = tl.constexpr(torch.finfo(torch.float64).eps)
LAUNCH = {"BLOCK": 4096, "num_warps": 16}


def redraw(
    probability: torch.Tensor,
    draw: torch.Tensor,
    top_p: float,
    asked: torch.Tensor,
    token: torch.Tensor,
    total: torch.Tensor,
) -> None:
    """Writes in `token` (B,) and `total` (B,), fp64, of the rows that are `asked` (B,), bool, on which token
    `draw` (B,), fp64, falls, and what the nucleus holds, from probabilities (B, V), fp32. The host does not
    wait."""
    count, columns = probability.shape
    block = min(LAUNCH["BLOCK"], triton.next_power_of_2(columns))
    if count:
        _redraw[(count,)](
            probability.contiguous(), draw.contiguous(), torch.full_like(draw, top_p), asked, token, total,
            COLUMNS=columns, **LAUNCH | {"BLOCK": block},
        )  # fmt: skip


@triton.jit
def _load_bits(row, column, COLUMNS: tl.constexpr):
    """Probabilities as integers; -1 behind the row's end."""
    value = tl.load(row + column, mask=column < COLUMNS, other=0.0).to(tl.int32, bitcast=True)
    return tl.where(column < COLUMNS, value, -1)


@triton.jit
def _sum_above(row, threshold, step, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """The probability of all tokens above `threshold`, and of those above one and two steps more."""
    first = tl.zeros([BLOCK], tl.float64)
    second, third = first, first
    for start in range(0, COLUMNS, BLOCK):
        bits = _load_bits(row, start + tl.arange(0, BLOCK), COLUMNS)
        value = bits.to(tl.float32, bitcast=True).to(tl.float64)
        first += tl.where(bits > threshold, value, 0.0)
        second += tl.where(bits > threshold + step, value, 0.0)
        third += tl.where(bits > threshold + 2 * step, value, 0.0)
    return tl.sum(first, 0), tl.sum(second, 0), tl.sum(third, 0)


@triton.jit
def _is_past(mass, bound, STRICT: tl.constexpr):
    if STRICT:
        return mass > bound
    else:
        return mass >= bound


@triton.jit
def _find_value(row, bound, STRICT: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """The smallest v for which the probability of all tokens above it is not past `bound`, as bits, and that
    probability."""
    found, mass = tl.full([], 0, tl.int32), tl.full([], 0.0, tl.float64)
    step = tl.full([], HIGHEST, tl.int32)
    for _ in range(DIGITS):
        first, second, third = _sum_above(row, found + step - 1, step, COLUMNS, BLOCK)
        one, two = _is_past(first, bound, STRICT), _is_past(second, bound, STRICT)
        three = _is_past(third, bound, STRICT)
        found += step * (one.to(tl.int32) + two.to(tl.int32) + three.to(tl.int32))
        mass = tl.where(three, mass, tl.where(two, third, tl.where(one, second, first)))
        step = step >> 2
    return found, mass


@triton.jit
def _count(mass, value, bound, STRICT: tl.constexpr):
    """The least n for which mass + n value is past `bound`, which mass alone is not; value > 0. The quotient
    is rounded, so the answer is at most one below its whole part or two above."""
    least = ((bound - mass) / value).to(tl.int32) - 1
    n = least
    for more in tl.static_range(3):
        n += 1 - _is_past(mass + (least + more).to(tl.float64) * value, bound, STRICT).to(tl.int32)
    return n


@triton.jit
def _find_token(row, bits, rank, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """The token that is number `rank`, from 1, among those whose probability has these bits."""
    before = tl.full([], 0, tl.int32)
    tokens = tl.full([BLOCK], 0, tl.int32)
    for start in range(0, COLUMNS, BLOCK):
        column = start + tl.arange(0, BLOCK)
        equal = (_load_bits(row, column, COLUMNS) == bits).to(tl.int32)
        number = before + tl.cumsum(equal, 0)
        tokens = tl.maximum(tokens, tl.where((equal == 1) & (number <= rank), column, 0))
        before += tl.sum(equal, 0)
    return tl.max(tokens, 0)


@triton.jit
def _redraw(probability, draw, top_p, asked, token, total, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    if tl.load(asked + row) != 0:
        probability += row * COLUMNS
        bound = tl.load(top_p + row)
        last, mass = _find_value(probability, bound, False, COLUMNS, BLOCK)
        value = last.to(tl.float32, bitcast=True).to(tl.float64)
        kept = tl.full([], 0, tl.int32)
        if last > 0:  # else the nucleus is all of the vocabulary
            kept = _count(mass, value, bound, False)
        whole = mass + kept.to(tl.float64) * value
        # Rounded up to the whole, a draw would fall behind the last token.
        point = tl.minimum(tl.load(draw + row) * whole, whole - whole * EPSILON)
        bits, mass = _find_value(probability, point, True, COLUMNS, BLOCK)
        rank = _count(mass, bits.to(tl.float32, bitcast=True).to(tl.float64), point, True)
        if bits == last:
            rank = tl.minimum(rank, kept)
        tl.store(token + row, _find_token(probability, bits, rank, COLUMNS, BLOCK))
        tl.store(total + row, whole)
