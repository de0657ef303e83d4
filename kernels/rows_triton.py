"""The row functions as Triton kernels, one program per row; needs triton.

With x, y the scaled logits of policy and reference, m and n their maxima so far, e =
exp(x - m), the forward pass keeps (online softmax, arXiv 1805.02867), for each lane of
neighbouring columns apart, so that threads meet once a row and not once a block,

    S = Σ e,   W = Σ e (x - m),   D = Σ e ((x - m) - (y - n)),   Q = Σ exp(y - n)

and, when a maximum moves, what it has is moved along. Then, for the sampled token t,

    logp = x_t - m - log S,   entropy = log S - W / S,   KL = D / S - (log S - log Q).

W and D are taken about the maxima, so that an offset of the logits costs no digits. The
gradient of logit v, for upstream a (log-prob), b (KL), c (entropy), is

    scale · ( a [v = t] + p_v ( b (log p_v - log r_v - KL) - c (log p_v + entropy) - a ) ).
"""

# Triton compiles these functions: operators and calls mean what it says they mean.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl

from .row_layout import ROWS, Row

LOAD = 16  # bytes that a thread loads at once
LOGP, REF_LOGP = tl.constexpr(int(Row.LOGP)), tl.constexpr(int(Row.REF_LOGP))
KL, ENTROPY_ROW = tl.constexpr(int(Row.KL)), tl.constexpr(int(Row.ENTROPY))
MAX, LOG_SUM = tl.constexpr(int(Row.MAX)), tl.constexpr(int(Row.LOG_SUM))
REF_MAX, REF_LOG_SUM = tl.constexpr(int(Row.REF_MAX)), tl.constexpr(int(Row.REF_LOG_SUM))
# Where a maximum starts: below any logit, yet finite, so that two of them have a difference.
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
# A multiplication may be fused with the subtraction behind it or not, depending on what else
# the kernel was asked for; unfused, a log-prob has the same bits whatever else is asked.
LAUNCH = {"enable_fp_fusion": False}
# Columns per trip and warps per program, the fastest of those tried on an H200 (bf16, 152,064 columns).
STATISTICS, GRADIENT = {"BLOCK": 2048, "num_warps": 4}, {"BLOCK": 4096, "num_warps": 8}


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
    rows = logits.new_zeros(ROWS, count, dtype=torch.float32)
    if count:
        _statistics[(count,)](
            logits, *logits.stride(), reference, *reference.stride(), ids.contiguous(), rows, count,
            SCALE=scale, EXACT=ref_logits is not None, ENTROPY=entropy, COLUMNS=columns,
            WIDE=LOAD // logits.itemsize, **_launch(STATISTICS, columns),
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
            **_launch(GRADIENT, columns),
        )  # fmt: skip


def _launch(best: dict[str, int], columns: int) -> dict[str, int | bool]:
    """`best`, with a block no larger than `columns` ask for."""
    block = min(best["BLOCK"], triton.next_power_of_2(columns))
    return LAUNCH | best | {"BLOCK": max(block, LOAD)}


@triton.jit
def _load(start, column, stride, COLUMNS: tl.constexpr, SCALE: tl.constexpr, WHOLE: tl.constexpr = False):
    """Scaled logits of a row, fp32; -inf behind its end, which no column is where all is WHOLE."""
    if WHOLE:
        value = tl.load(start + column * stride)
    else:
        value = tl.load(start + column * stride, mask=column < COLUMNS, other=-float("inf"))
    return value.to(tl.float32) * SCALE


@triton.jit
def _moved(fade, total, shift, weight):
    """fade · (total + shift · weight): a sum about a maximum that moves by `shift`."""
    return tl.where(fade > 0, fade * (total + shift * weight), 0.0)


@triton.jit
def _take_in(
    logits, column_stride, ref_logits, ref_column_stride, column,
    top, total, entropy_sum, ref_top, ref_total, kl_sum,
    SCALE: tl.constexpr, EXACT: tl.constexpr, ENTROPY: tl.constexpr, COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """The running sums of each lane after the logits at `column` (lanes, neighbours)."""
    x = _load(logits, column, column_stride, COLUMNS, SCALE, WHOLE)
    new_top = tl.maximum(top, tl.max(x, 1))
    below = x - new_top[:, None]
    e, fade = tl.exp(below), tl.exp(top - new_top)
    if ENTROPY:
        fresh = tl.sum(tl.where(e > 0, e * below, 0.0), 1)
        entropy_sum = _moved(fade, entropy_sum, top - new_top, total) + fresh
    if EXACT:
        y = _load(ref_logits, column, ref_column_stride, COLUMNS, SCALE, WHOLE)
        new_ref_top = tl.maximum(ref_top, tl.max(y, 1))
        ref_below = y - new_ref_top[:, None]
        fresh = tl.sum(tl.where(e > 0, e * (below - ref_below), 0.0), 1)
        kl_sum = _moved(fade, kl_sum, (top - ref_top) - (new_top - new_ref_top), total) + fresh
        ref_total = tl.exp(ref_top - new_ref_top) * ref_total + tl.sum(tl.exp(ref_below), 1)
        ref_top = new_ref_top
    total = fade * total + tl.sum(e, 1)
    return new_top, total, entropy_sum, ref_top, ref_total, kl_sum


@triton.jit
def _statistics(
    logits, row_stride, column_stride, ref_logits, ref_row_stride, ref_column_stride, ids, out, count,
    SCALE: tl.constexpr, EXACT: tl.constexpr, ENTROPY: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    ref_logits += row * ref_row_stride
    column = (tl.arange(0, BLOCK // WIDE)[:, None] * WIDE + tl.arange(0, WIDE)[None, :]).to(tl.int64)
    tops = tl.full([BLOCK // WIDE], LOWEST, tl.float32)
    ref_tops, totals = tops, tl.zeros([BLOCK // WIDE], tl.float32)
    ref_totals, entropy_sums, kl_sums = totals, totals, totals
    END: tl.constexpr = COLUMNS // BLOCK * BLOCK
    for start in range(0, END, BLOCK):
        tops, totals, entropy_sums, ref_tops, ref_totals, kl_sums = _take_in(
            logits, column_stride, ref_logits, ref_column_stride, start + column,
            tops, totals, entropy_sums, ref_tops, ref_totals, kl_sums, SCALE, EXACT, ENTROPY, COLUMNS, True,
        )  # fmt: skip
    if END < COLUMNS:
        tops, totals, entropy_sums, ref_tops, ref_totals, kl_sums = _take_in(
            logits, column_stride, ref_logits, ref_column_stride, END + column,
            tops, totals, entropy_sums, ref_tops, ref_totals, kl_sums, SCALE, EXACT, ENTROPY, COLUMNS, False,
        )  # fmt: skip
    top = tl.max(tops, 0)
    fade = tl.exp(tops - top)
    total = tl.sum(fade * totals, 0)
    token = tl.load(ids + row)
    kept, known = token >= 0, (token >= 0) & (token < COLUMNS)
    log_sum = tl.log(total)
    x = tl.load(logits + token * column_stride, mask=known, other=float("nan")).to(tl.float32) * SCALE
    tl.store(out + LOGP * count + row, tl.where(kept, x - top - log_sum, 0.0))
    tl.store(out + MAX * count + row, top)
    tl.store(out + LOG_SUM * count + row, log_sum)
    if ENTROPY:
        entropy_sum = tl.sum(_moved(fade, entropy_sums, tops - top, totals), 0)
        tl.store(out + ENTROPY_ROW * count + row, tl.where(kept, log_sum - entropy_sum / total, 0.0))
    if EXACT:
        ref_top = tl.max(ref_tops, 0)
        ref_log_sum = tl.log(tl.sum(tl.exp(ref_tops - ref_top) * ref_totals, 0))
        kl_sum = tl.sum(_moved(fade, kl_sums, (tops - ref_tops) - (top - ref_top), totals), 0)
        y = tl.load(ref_logits + token * ref_column_stride, mask=known, other=float("nan")).to(tl.float32)
        tl.store(out + REF_LOGP * count + row, tl.where(kept, y * SCALE - ref_top - ref_log_sum, 0.0))
        tl.store(out + KL * count + row, tl.where(kept, kl_sum / total - (log_sum - ref_log_sum), 0.0))
        tl.store(out + REF_MAX * count + row, ref_top)
        tl.store(out + REF_LOG_SUM * count + row, ref_log_sum)


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
    g_logp, g_kl, g_entropy = (
        tl.load(grad + LOGP * count),
        tl.load(grad + KL * count),
        tl.load(grad + ENTROPY_ROW * count),
    )
    kl, entropy = tl.load(rows + KL * count), tl.load(rows + ENTROPY_ROW * count)
    top, log_sum = tl.load(rows + MAX * count), tl.load(rows + LOG_SUM * count)
    ref_top, ref_log_sum = tl.load(rows + REF_MAX * count), tl.load(rows + REF_LOG_SUM * count)
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
