"""The row functions in plain PyTorch: the oracle of the Triton kernels, and what runs
without CUDA. The formulas stand in `rows_triton`."""

import torch

from .row_layout import RESULTS, ROWS, Row


def row_statistics(
    logits: torch.Tensor,
    ids: torch.Tensor,
    ref_logits: torch.Tensor | None,
    scale: float,
    entropy: bool,
) -> torch.Tensor:
    """Statistics of each row's sampled token under softmax(logits * scale).

    Args:
        logits: (N, V), any float dtype and strides; reduced in fp32.
        ids: Sampled tokens (N,); a negative one marks a row whose statistics are 0.
        ref_logits: (N, V), for the exact KL.
        scale: 1 / temperature.
        entropy: Whether the entropy is wanted.

    Returns:
        fp32 (8, N): log-prob, reference log-prob, exact KL, entropy (0 where not asked for);
        then for the gradient maximum and log of the sum of exp above it, policy and reference.
    """
    token = ids.clamp(min=0)[:, None]
    rows = logits.new_zeros(ROWS, len(ids), dtype=torch.float32)
    x, rows[Row.MAX] = _below_maximum(logits, scale)
    chosen = x.gather(1, token)[:, 0]
    p = x.exp() if ref_logits is not None or entropy else x.exp_()
    rows[Row.LOG_SUM] = p.sum(-1).log()
    rows[Row.LOGP] = chosen - rows[Row.LOG_SUM]
    if ref_logits is not None or entropy:
        log_p = x.sub_(rows[Row.LOG_SUM, :, None])
        p = log_p.exp()
        log_p.masked_fill_(p == 0, 0)
    if entropy:
        rows[Row.ENTROPY] = -(p * log_p).sum(-1)
    if ref_logits is not None:
        x, rows[Row.REF_MAX] = _below_maximum(ref_logits, scale)
        rows[Row.REF_LOG_SUM] = x.exp().sum(-1).log()
        log_r = x.sub_(rows[Row.REF_LOG_SUM, :, None])
        rows[Row.REF_LOGP] = log_r.gather(1, token)[:, 0]
        rows[Row.KL] = (log_p - log_r.masked_fill_(p == 0, 0)).mul_(p).sum(-1)
    rows[RESULTS] = torch.where(ids >= 0, rows[RESULTS], 0.0)
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
    """Writes the gradient of the logits into `out` (N, V), any float dtype, which may be
    `logits` itself. `rows` (8, N) is what `row_statistics` gave, `grad` (8, N) its upstream
    gradient, of which log-prob, KL and entropy count."""
    g_logp, _, g_kl, g_entropy = (grad[RESULTS, :, None] * scale).unbind()
    work = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    log_p = _normalised(logits, scale, rows[Row.MAX], rows[Row.LOG_SUM], work)
    slope = -g_logp
    if ref_logits is None and not entropy:
        p = log_p.exp_()
    else:
        p = log_p.exp()
        log_p.masked_fill_(p == 0, 0)
    if entropy:
        slope = slope - g_entropy * (log_p + rows[Row.ENTROPY, :, None])
    if ref_logits is not None:
        log_r = _normalised(ref_logits, scale, rows[Row.REF_MAX], rows[Row.REF_LOG_SUM]).masked_fill_(
            p == 0, 0
        )
        slope = slope + g_kl * (log_p - log_r - rows[Row.KL, :, None])
    gradient = p.mul_(slope).scatter_add_(1, ids.clamp(min=0)[:, None], g_logp)
    gradient[ids < 0] = 0
    if gradient is not out:
        out.copy_(gradient)


def _below_maximum(logits: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """logits * scale less its row's maximum (N, V), and the maxima (N,)."""
    x = logits.float() if scale == 1 else logits.float() * scale
    top = x.amax(-1)
    return x - top[:, None] if x is logits else x.sub_(top[:, None]), top


def _normalised(
    logits: torch.Tensor,
    scale: float,
    top: torch.Tensor,
    log_sum: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """log softmax(logits * scale) (N, V), into `out` where there is one."""
    return torch.mul(logits.float(), scale, out=out).sub_(top[:, None]).sub_(log_sum[:, None])
