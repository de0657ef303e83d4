"""The row functions as Triton kernels, one program a row; needs triton.

With x, y the scaled logits of policy and reference, m and n their maxima so far, e =
exp(x - m), the forward pass keeps (online softmax, arXiv 1805.02867)

    S = Σ e,   W = Σ e (x - m),   D = Σ e ((x - m) - (y - n)),   Q = Σ exp(y - n)

and, when a maximum moves, what it has is moved along. Then, for the sampled token t,

    logp = x_t - m - log S,   entropy = log S - W / S,   KL = D / S - (log S - log Q).

W and D are taken about the maxima, so that an offset of the logits costs no digits. The
gradient of logit v, for upstream a (log-prob), b (KL), c (entropy), is

    scale · ( a [v = t] + p_v ( b (log p_v - log r_v - KL) - c (log p_v + entropy) - a ) ).
"""

import torch
import triton
import triton.language as tl

BLOCK = 4096
# Where a maximum starts: below any logit, yet finite, so that two of them have a difference.
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
# A multiplication may be fused with the subtraction behind it or not, depending on what else
# the kernel was asked for; unfused, a log-prob has the same bits whatever else is asked.
LAUNCH = {"num_warps": 8, "enable_fp_fusion": False}


def row_statistics(
    logits: torch.Tensor,
    ids: torch.Tensor,
    ref_logits: torch.Tensor | None,
    scale: float,
    entropy: bool,
) -> torch.Tensor:
    """As `rows_torch.row_statistics`; a token beyond the vocabulary has NaN for its log-prob."""
    count, columns = logits.shape
    reference = logits if ref_logits is None else ref_logits
    rows = logits.new_zeros(8, count, dtype=torch.float32)
    if count:
        _statistics[(count,)](
            logits, *logits.stride(), reference, *reference.stride(), ids.contiguous(), rows, count,
            SCALE=scale, EXACT=ref_logits is not None, ENTROPY=entropy, COLUMNS=columns,
            BLOCK=_block(columns), **LAUNCH,
        )  # fmt: skip
    return rows


def row_gradient(
    logits: torch.Tensor,
    ids: torch.Tensor,
    ref_logits: torch.Tensor | None,
    rows: torch.Tensor,
    grad: torch.Tensor,
    scale: float,
    entropy: bool,
    out: torch.Tensor,
) -> None:
    """As `rows_torch.row_gradient`."""
    count, columns = logits.shape
    reference = logits if ref_logits is None else ref_logits
    if count:
        _gradient[(count,)](
            logits, *logits.stride(), reference, *reference.stride(), ids.contiguous(),
            rows.contiguous(), grad.contiguous(), out, *out.stride(), count,
            SCALE=scale, EXACT=ref_logits is not None, ENTROPY=entropy, COLUMNS=columns,
            BLOCK=_block(columns), **LAUNCH,
        )  # fmt: skip


def _block(columns: int) -> int:
    return min(BLOCK, triton.next_power_of_2(columns))


@triton.jit
def _load(start, column, stride, COLUMNS: tl.constexpr, SCALE: tl.constexpr):
    """Scaled logits of a row, fp32; -inf behind its end."""
    value = tl.load(start + column * stride, mask=column < COLUMNS, other=-float("inf"))
    return value.to(tl.float32) * SCALE


@triton.jit
def _statistics(
    logits, row_stride, column_stride, ref_logits, ref_row_stride, ref_column_stride, ids, out, count,
    SCALE: tl.constexpr, EXACT: tl.constexpr, ENTROPY: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    ref_logits += row * ref_row_stride
    top = tl.full((), LOWEST, tl.float32)
    ref_top, total = top, tl.zeros((), tl.float32)
    ref_total, surprise, excess = total, total, total
    for start in range(0, COLUMNS, BLOCK):
        column = start + tl.arange(0, BLOCK).to(tl.int64)
        x = _load(logits, column, column_stride, COLUMNS, SCALE)
        new_top = tl.maximum(top, tl.max(x, 0))
        e, fade = tl.exp(x - new_top), tl.exp(top - new_top)
        if ENTROPY:
            fresh = tl.sum(tl.where(e > 0, e * (x - new_top), 0.0), 0)
            surprise = fade * (surprise + (top - new_top) * total) + fresh
        if EXACT:
            y = _load(ref_logits, column, ref_column_stride, COLUMNS, SCALE)
            new_ref_top = tl.maximum(ref_top, tl.max(y, 0))
            fresh = tl.sum(tl.where(e > 0, e * ((x - new_top) - (y - new_ref_top)), 0.0), 0)
            moved = (top - ref_top) - (new_top - new_ref_top)
            excess = fade * (excess + moved * total) + fresh
            ref_total = tl.exp(ref_top - new_ref_top) * ref_total + tl.sum(tl.exp(y - new_ref_top), 0)
            ref_top = new_ref_top
        total = fade * total + tl.sum(e, 0)
        top = new_top
    token = tl.load(ids + row)
    kept, known = token >= 0, (token >= 0) & (token < COLUMNS)
    log_sum = tl.log(total)
    x = tl.load(logits + token * column_stride, mask=known, other=float("nan")).to(tl.float32) * SCALE
    tl.store(out + row, tl.where(kept, x - top - log_sum, 0.0))
    tl.store(out + 4 * count + row, top)
    tl.store(out + 5 * count + row, log_sum)
    if ENTROPY:
        tl.store(out + 3 * count + row, tl.where(kept, log_sum - surprise / total, 0.0))
    if EXACT:
        ref_log_sum = tl.log(ref_total)
        y = tl.load(ref_logits + token * ref_column_stride, mask=known, other=float("nan")).to(tl.float32)
        tl.store(out + count + row, tl.where(kept, y * SCALE - ref_top - ref_log_sum, 0.0))
        tl.store(out + 2 * count + row, tl.where(kept, excess / total - (log_sum - ref_log_sum), 0.0))
        tl.store(out + 6 * count + row, ref_top)
        tl.store(out + 7 * count + row, ref_log_sum)


@triton.jit
def _gradient(
    logits, row_stride, column_stride, ref_logits, ref_row_stride, ref_column_stride, ids, rows, grad,
    out, out_row_stride, out_column_stride, count,
    SCALE: tl.constexpr, EXACT: tl.constexpr, ENTROPY: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    ref_logits += row * ref_row_stride
    out += row * out_row_stride
    rows += row
    grad += row
    token = tl.load(ids + row)
    g_logp, g_kl, g_entropy = tl.load(grad), tl.load(grad + 2 * count), tl.load(grad + 3 * count)
    kl, entropy = tl.load(rows + 2 * count), tl.load(rows + 3 * count)
    top, log_sum = tl.load(rows + 4 * count), tl.load(rows + 5 * count)
    ref_top, ref_log_sum = tl.load(rows + 6 * count), tl.load(rows + 7 * count)
    for start in range(0, COLUMNS, BLOCK):
        column = start + tl.arange(0, BLOCK).to(tl.int64)
        log_p = _load(logits, column, column_stride, COLUMNS, SCALE) - top - log_sum
        p = tl.exp(log_p)
        slope = tl.zeros([BLOCK], tl.float32) - g_logp
        if EXACT:
            log_r = _load(ref_logits, column, ref_column_stride, COLUMNS, SCALE) - ref_top - ref_log_sum
            slope += g_kl * (log_p - log_r - kl)
        if ENTROPY:
            slope -= g_entropy * (log_p + entropy)
        gradient = tl.where(p > 0, p * slope, 0.0) + tl.where(column == token, g_logp, 0.0)
        gradient = tl.where(token >= 0, gradient * SCALE, 0.0)
        tl.store(out + column * out_column_stride, gradient.to(out.dtype.element_ty), mask=column < COLUMNS)
