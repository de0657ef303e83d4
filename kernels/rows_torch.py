"""The row functions in plain PyTorch: the oracle of the Triton kernels, and what runs
without CUDA. The formulas stand in `rows_triton`."""

import torch


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
    rows = logits.new_zeros(8, len(ids), dtype=torch.float32)
    log_p, rows[4], rows[5] = _log_softmax(logits, scale)
    rows[0] = log_p.gather(1, token)[:, 0]
    if ref_logits is not None or entropy:
        p = log_p.exp()
        log_p.masked_fill_(p == 0, 0)
    if entropy:
        rows[3] = -(p * log_p).sum(-1)
    if ref_logits is not None:
        log_r, rows[6], rows[7] = _log_softmax(ref_logits, scale)
        rows[1] = log_r.gather(1, token)[:, 0]
        rows[2] = (log_p - log_r.masked_fill_(p == 0, 0)).mul_(p).sum(-1)
    rows[:4] = torch.where(ids >= 0, rows[:4], 0.0)
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
    g_logp, _, g_kl, g_entropy = grad[:4, :, None].unbind()
    log_p = _normalised(logits, scale, rows[4], rows[5])
    p = log_p.exp()
    slope = -g_logp
    if ref_logits is not None or entropy:
        log_p.masked_fill_(p == 0, 0)
    if ref_logits is not None:
        log_r = _normalised(ref_logits, scale, rows[6], rows[7]).masked_fill_(p == 0, 0)
        slope = slope + g_kl * (log_p - log_r - rows[2, :, None])
    if entropy:
        slope = slope - g_entropy * (log_p + rows[3, :, None])
    gradient = p.mul_(slope).scatter_add_(1, ids.clamp(min=0)[:, None], g_logp)
    out.copy_(gradient.mul_(scale).masked_fill_(ids[:, None] < 0, 0))


def _log_softmax(logits: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """log softmax(logits * scale) (N, V), the rows' maxima (N,) and the log of their sums of
    exp above the maximum (N,)."""
    x = logits.float() * scale
    top = x.amax(-1)
    log_sum = x.sub_(top[:, None]).exp().sum(-1).log()
    return x.sub_(log_sum[:, None]), top, log_sum


def _normalised(logits: torch.Tensor, scale: float, top: torch.Tensor, log_sum: torch.Tensor) -> torch.Tensor:
    return (logits.float() * scale).sub_(top[:, None]).sub_(log_sum[:, None])
