"""Log-probs, KL and entropy from logits that exist already."""

from typing import Any

import torch

from .dispatch import operator, row_kernels
from .row_layout import ROWS, Row
from .token_statistics import TokenStatistics, assemble, check, with_means


def fused_logprob_kl(
    logits: torch.Tensor,
    ids: torch.Tensor,
    *,
    ref_logits: torch.Tensor | None = None,
    ref_logp: torch.Tensor | None = None,
    stream: torch.Tensor | None = None,
    streams: int = 2,
    temperature: float = 1.0,
    kl: str | None = "k3",
    entropy: bool = False,
    in_place: bool = False,
) -> TokenStatistics:
    """Statistics of each sampled token under softmax(logits / temperature).

    One pass over each stream's logits forward and one backward; exact KL and entropy cost no
    extra pass forward.

    Args:
        logits: Policy logits (N, V), any float dtype and strides; reduced in fp32.
        ids: Sampled tokens (N,); a negative one masks its row: statistics and gradients 0.
        ref_logits: Reference logits (N, V), without gradient; needed for kl="exact".
        ref_logp: Reference log-probs (N,), in place of ref_logits.
        stream: Each token's stream (N,), from 0 to streams - 1, or negative for none: asks
            for the means over each stream.
        temperature: Divides both models' logits.
        kl: "k1", "k2", "k3" (see `kl_estimate`), "exact" (sum over the vocabulary) or None;
            without a reference there is none of the first three.
        entropy: Whether to return the policy's entropy.
        in_place: Whether the backward pass may overwrite `logits` with their gradient; then
            nothing else may read them.

    Raises:
        ValueError: kl="exact" without ref_logits, an unknown `kl`, temperature not positive.
    """
    check(kl, temperature, ref_logits is not None, "ref_logits")
    scale, exact = 1 / temperature, None
    if kl == "exact" and ref_logits is not None:
        exact = ref_logits.detach()
    elif ref_logits is not None:
        alone = (ref_logits.detach(), ids, None, scale, False, False)
        ref_logp = torch.ops.ivgr.row_statistics(*alone)[Row.LOGP]
    rows = torch.ops.ivgr.row_statistics(logits, ids, exact, scale, entropy, in_place)
    return with_means(assemble(rows, kl, entropy, ref_logp), stream, streams, ids)


@operator(
    "(Tensor logits, Tensor ids, Tensor? ref_logits, float scale, bool entropy, bool in_place) -> Tensor"
)
def row_statistics(
    logits: torch.Tensor,
    ids: torch.Tensor,
    ref_logits: torch.Tensor | None,
    scale: float,
    entropy: bool,
    in_place: bool,
) -> torch.Tensor:
    """(8, N), see `rows_torch.row_statistics`; `in_place` speaks to the gradient alone."""
    return row_kernels(logits.device).row_statistics(logits, ids, ref_logits, scale, entropy)


@operator(
    "(Tensor logits, Tensor ids, Tensor? ref_logits, Tensor rows, Tensor grad, float scale, bool entropy)"
    " -> Tensor"
)
def row_gradient(
    logits: torch.Tensor,
    ids: torch.Tensor,
    ref_logits: torch.Tensor | None,
    rows: torch.Tensor,
    grad: torch.Tensor,
    scale: float,
    entropy: bool,
) -> torch.Tensor:
    """The gradient of the logits, (N, V) contiguous, in their dtype."""
    out = logits.new_empty(logits.shape)
    row_kernels(logits.device).row_gradient(logits, ids, ref_logits, rows, grad, scale, entropy, out)
    return out


@operator(
    "(Tensor(a!) logits, Tensor ids, Tensor? ref_logits, Tensor rows, Tensor grad, float scale, bool entropy)"
    " -> ()",
    mutates=("logits",),
)
def row_gradient_(
    logits: torch.Tensor,
    ids: torch.Tensor,
    ref_logits: torch.Tensor | None,
    rows: torch.Tensor,
    grad: torch.Tensor,
    scale: float,
    entropy: bool,
) -> None:
    """The gradient of the logits, in their place."""
    row_kernels(logits.device).row_gradient(logits, ids, ref_logits, rows, grad, scale, entropy, logits)


@row_statistics.register_fake
def _(logits: torch.Tensor, *_: Any) -> torch.Tensor:
    return logits.new_empty(ROWS, len(logits), dtype=torch.float32)


@row_gradient.register_fake
def _(logits: torch.Tensor, *_: Any) -> torch.Tensor:
    return logits.new_empty(logits.shape)


def _save(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    logits, ids, ref_logits, *ctx.settings = inputs
    ctx.save_for_backward(logits, ids, ref_logits, output)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    (logits, ids, ref_logits, rows), (scale, entropy, in_place) = ctx.saved_tensors, ctx.settings
    arguments = (logits, ids, ref_logits, rows, grad, scale, entropy)
    if in_place:
        torch.ops.ivgr.row_gradient_(*arguments)
        gradient = logits
    else:
        gradient = torch.ops.ivgr.row_gradient(*arguments)
    return gradient, None, None, None, None, None


row_statistics.register_autograd(_backward, setup_context=_save)
