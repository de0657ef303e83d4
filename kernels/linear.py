"""Log-probs, KL and entropy from hidden states: the (N, V) logits never exist as a whole."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .chunks import ChunkedHead, HeadGradients, LinearOperands
from .dispatch import operator
from .row_layout import Row
from .token_statistics import TokenStatistics, assemble, check, with_means

Head = torch.Tensor | torch.nn.Linear
TokenLoss = Callable[..., torch.Tensor]
CHUNK_BYTES = {"cuda": 608 << 20, "cpu": 24 << 20}
"""How large one chunk's logits are; on CUDA 2,048 tokens of 152,064 words in bf16 and a bit."""
TILE = 128
"""On CUDA larger chunks have a multiple of so many tokens, as GEMMs like it."""


def fused_linear_logprob_kl(
    hidden: torch.Tensor,
    weight: Head,
    ids: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    ref_hidden: torch.Tensor | None = None,
    ref_weight: Head | None = None,
    ref_bias: torch.Tensor | None = None,
    ref_logp: torch.Tensor | None = None,
    stream: torch.Tensor | None = None,
    streams: int = 2,
    temperature: float = 1.0,
    kl: str | None = "k3",
    entropy: bool = False,
    vocabulary: int | None = None,
    logits_dtype: torch.dtype | None = None,
    chunk_bytes: int | None = None,
    token_loss: TokenLoss | None = None,
) -> TokenStatistics:
    """As `fused_logprob_kl` on logits = hidden @ weight.T + bias.

    Args:
        hidden: The policy's hidden states (N, H).
        weight: Its head: a matrix (V, H), or the `nn.Linear` itself, bias included.
        ids, stream, streams, temperature, kl, entropy: As in `fused_logprob_kl`.
        ref_hidden, ref_weight: The reference's, without gradient; ref_weight may be `weight`.
        bias, ref_bias: (V,), of a head given as a matrix.
        ref_logp: Reference log-probs (N,), in place of the reference's hidden states.
        vocabulary: How many words there are, where rows behind them only pad the head.
        logits_dtype: Of the logits between GEMM and row kernel; by default that of hidden,
            but fp32 for the exact KL, which cancels where the policies are close.
        chunk_bytes: How large one chunk's logits may be; by default CHUNK_BYTES.
        token_loss: `token_loss(logp, ref_logp, kl, entropy, rows)` gives the loss of each
            token of a chunk, `rows` being the chunk's slice of the N. It is differentiated
            at once, so that logits are made once; then gradients come through `loss`, the
            sum, alone. Without it the backward pass makes the logits again.

    Raises:
        ValueError: As `fused_logprob_kl`; or only one of ref_hidden and ref_weight is given.
        TypeError: A head is a module other than a plain `nn.Linear`.
    """
    if (ref_hidden is None) != (ref_weight is None):
        raise ValueError("ref_hidden and ref_weight go together: one of them is None")
    check(kl, temperature, ref_hidden is not None, "ref_hidden and ref_weight")
    policy = _projection(hidden, weight, bias, vocabulary)
    dtype = logits_dtype or (torch.float32 if kl == "exact" else hidden.dtype)
    size = _chunk_size(policy.weight, dtype, chunk_bytes)
    operands = LinearOperands(*policy, *NO_PROJECTION, ids, 1 / temperature, entropy, dtype, size)
    if ref_hidden is not None and ref_weight is not None:
        reference = _projection(ref_hidden.detach(), ref_weight, ref_bias, vocabulary, frozen=True)
        if kl == "exact":
            operands = LinearOperands(*policy, *reference, ids, 1 / temperature, entropy, dtype, size)
        else:
            alone = LinearOperands(*reference, *NO_PROJECTION, ids, 1 / temperature, False, dtype, size)
            ref_logp = torch.ops.ivgr.linear_statistics(*alone)[Row.LOGP]
    if token_loss is None:
        statistics = assemble(torch.ops.ivgr.linear_statistics(*operands), kl, entropy, ref_logp)
    else:
        statistics = _with_loss(operands, token_loss, kl, ref_logp)  # pyright: ignore[reportCallIssue]
    return with_means(statistics, stream, streams, ids)


class Projection(NamedTuple):
    """hidden (N, H), weight (V, H) and bias (V,), all of the hidden states' dtype."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None


NO_PROJECTION = (None, None, None)


def _chunk_size(weight: torch.Tensor, dtype: torch.dtype, chunk_bytes: int | None) -> int:
    """Returns how many tokens' logits fit into `chunk_bytes`; at least one."""
    budget = chunk_bytes or CHUNK_BYTES.get(weight.device.type, CHUNK_BYTES["cpu"])
    size = max(1, budget // (len(weight) * dtype.itemsize))
    return size - size % TILE if weight.is_cuda and size > TILE else size


def _projection(
    hidden: torch.Tensor, head: Head, bias: torch.Tensor | None, vocabulary: int | None, frozen: bool = False
) -> Projection:
    if isinstance(head, torch.nn.Module):
        if type(head) is not torch.nn.Linear:
            raise TypeError(
                f"the head is a {type(head).__name__}, not a plain nn.Linear: taking its weight would "
                "bypass an adapter or wrapper; merge it, or call it and use fused_logprob_kl"
            )
        head, bias = head.weight, head.bias
    if frozen:
        head, bias = head.detach(), None if bias is None else bias.detach()
    if vocabulary is not None:  # even a whole slice would copy the gradient
        head, bias = head[:vocabulary], None if bias is None else bias[:vocabulary]
    return Projection(hidden, head.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))


OPERANDS = (
    "Tensor hidden, Tensor weight, Tensor? bias, Tensor? ref_hidden, Tensor? ref_weight, Tensor? ref_bias,"
    " Tensor ids, float scale, bool entropy, ScalarType dtype, SymInt size"
)
DIFFERENTIABLE, TENSORS = 3, 7  # the first operands: hidden, weight, bias; and all up to ids


@operator(f"({OPERANDS}) -> Tensor")
def linear_statistics(*arguments: Any) -> torch.Tensor:
    """(8, N), see `rows_torch.row_statistics`."""
    operands = LinearOperands(*arguments)
    head, rows = ChunkedHead(operands), operands.empty_rows()
    for chunk in head.slices():
        rows[:, chunk] = head.statistics(chunk, *head.logits(chunk))
    return rows


@operator(f"({OPERANDS}, Tensor rows, Tensor grad, bool[3] needed) -> Tensor[]")
def linear_gradient(*arguments: Any) -> list[torch.Tensor]:
    """The gradients of hidden, weight and bias that are needed; makes the logits again."""
    *own, rows, grad, needed = arguments
    operands = LinearOperands(*own)
    head, gradients = ChunkedHead(operands), HeadGradients(operands, needed)
    for chunk in head.slices():
        parts = rows[:, chunk], grad[:, chunk]
        gradients.add(chunk, head.logits_gradient(chunk, *head.logits(chunk), *parts))
    return [found.to(operands.hidden.dtype) for found in gradients.found()]


@linear_statistics.register_fake
def _(*arguments: Any) -> torch.Tensor:
    return LinearOperands(*arguments).empty_rows()


@linear_gradient.register_fake
def _(*arguments: Any) -> list[torch.Tensor]:
    needed = arguments[-1]
    return [torch.empty_like(tensor) for tensor, need in zip(arguments[:3], needed, strict=True) if need]


def _save(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[:TENSORS], output)
    ctx.settings = inputs[TENSORS:]


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    *tensors, rows = ctx.saved_tensors
    needed = list(ctx.needs_input_grad[:DIFFERENTIABLE])
    found = iter(torch.ops.ivgr.linear_gradient(*tensors, *ctx.settings, rows, grad, needed))
    without = len(LinearOperands._fields) - DIFFERENTIABLE
    return *(next(found) if need else None for need in needed), *[None] * without


linear_statistics.register_autograd(_backward, setup_context=_save)


@torch.compiler.disable
def _with_loss(
    operands: LinearOperands, token_loss: TokenLoss, kl: str | None, ref_logp: torch.Tensor | None
) -> TokenStatistics:
    """Statistics without gradient, and the summed loss, whose gradients are known already."""
    wanted = operands[:DIFFERENTIABLE]
    needed = [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in wanted]
    with torch.no_grad():
        head, rows, losses = ChunkedHead(operands), operands.empty_rows(), []
        gradients = HeadGradients(operands, needed)
        for chunk in head.slices():
            ref = None if ref_logp is None else ref_logp[chunk]
            rows[:, chunk], loss = _differentiate(head, chunk, gradients, token_loss, kl, ref)
            losses.append(loss)
        total = torch.stack(losses).sum() if losses else rows.sum()
    statistics = assemble(rows, kl, operands.entropy, ref_logp)
    inputs = [tensor for tensor, need in zip(wanted, needed, strict=True) if need]
    return statistics._replace(loss=_KnownGradients.apply(total, gradients.found(), *inputs))


def _differentiate(
    head: ChunkedHead,
    chunk: slice,
    gradients: HeadGradients,
    token_loss: TokenLoss,
    kl: str | None,
    ref_logp: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds a chunk's gradients; returns its statistics (8, n) and its summed loss."""
    logits, ref_logits = head.logits(chunk)
    rows = head.statistics(chunk, logits, ref_logits).requires_grad_(bool(gradients.found()))
    with torch.enable_grad():
        statistics = assemble(rows, kl, head.operands.entropy, ref_logp)
        loss = token_loss(*statistics[:4], chunk).sum()
    if rows.requires_grad:
        (grad,) = torch.autograd.grad(loss, rows)
        gradients.add(chunk, head.logits_gradient(chunk, logits, ref_logits, rows.detach(), grad))
    return rows.detach(), loss.detach()


class _KnownGradients(torch.autograd.Function):
    """A scalar whose gradients with respect to some inputs are at hand."""

    @staticmethod
    def forward(
        ctx: Any, value: torch.Tensor, gradients: list[torch.Tensor], *inputs: torch.Tensor
    ) -> torch.Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scales them in place, so they serve one backward pass."""
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of token_loss were used up by an earlier backward pass")
        return None, None, *(gradient.mul_(grad) for gradient in gradients)
