"""Log-probs, KL and entropy from hidden states: the (N, V) logits never exist as a whole."""

from collections.abc import Callable

import torch

from .chunks import Chunked, HeadGradients
from .dispatch import operator
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
    ref_hidden: torch.Tensor | None,
    ref_weight: Head | None,
    ids: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
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
        ref_hidden, ref_weight: The reference's, without gradient; ref_weight may be `weight`.
        ids, stream, streams, temperature, kl, entropy: As in `fused_logprob_kl`.
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
        ValueError: As `fused_logprob_kl`.
        TypeError: A head is a module other than a plain `nn.Linear`.
    """
    has_reference = ref_hidden is not None and ref_weight is not None
    check(kl, temperature, has_reference, "ref_hidden and ref_weight")
    policy, reference = _operands(hidden, weight, bias, vocabulary), (None, None, None)
    if has_reference:
        reference = _operands(ref_hidden.detach(), ref_weight, ref_bias, vocabulary, frozen=True)
    dtype = logits_dtype or (torch.float32 if kl == "exact" else hidden.dtype)
    budget = chunk_bytes or CHUNK_BYTES.get(hidden.device.type, CHUNK_BYTES["cpu"])
    size = max(1, budget // (len(policy[1]) * dtype.itemsize))
    if hidden.is_cuda and size > TILE:
        size -= size % TILE
    if has_reference and kl != "exact":
        alone = (*reference, None, None, None, ids, 1 / temperature, False, dtype, size)
        ref_logp, reference = torch.ops.ivgr.linear_statistics(*alone)[0], (None, None, None)
    operands = (*policy, *reference, ids, 1 / temperature, entropy, dtype, size)
    if token_loss is None:
        statistics = assemble(torch.ops.ivgr.linear_statistics(*operands), kl, entropy, ref_logp)
    else:
        statistics = _with_loss(Chunked(*operands), token_loss, kl, ref_logp)
    return with_means(statistics, stream, streams, ids)


def _operands(
    hidden: torch.Tensor, head: Head, bias: torch.Tensor | None, vocabulary: int | None, frozen: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """hidden (N, H), weight (V, H) and bias (V,) or None, all of the hidden states' dtype."""
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
    return hidden, head.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)


OPERANDS = (
    "Tensor hidden, Tensor weight, Tensor? bias, Tensor? ref_hidden, Tensor? ref_weight, Tensor? ref_bias,"
    " Tensor ids, float scale, bool entropy, ScalarType dtype, SymInt size"
)


@operator(f"({OPERANDS}) -> Tensor")
def linear_statistics(*operands):
    """(8, N), see `rows_torch.row_statistics`."""
    chunked = Chunked(*operands)
    rows = chunked.empty_rows()
    for chunk in chunked.slices():
        rows[:, chunk] = chunked.statistics(chunk, *chunked.logits(chunk))
    return rows


@operator(f"({OPERANDS}, Tensor rows, Tensor grad, bool[3] needed) -> Tensor[]")
def linear_gradient(*arguments):
    """The gradients of hidden, weight and bias that are needed; makes the logits again."""
    *operands, rows, grad, needed = arguments
    chunked = Chunked(*operands)
    gradients = HeadGradients(chunked, needed)
    for chunk in chunked.slices():
        parts = rows[:, chunk], grad[:, chunk]
        gradients.add(chunk, chunked.logits_gradient(chunk, *chunked.logits(chunk), *parts))
    return [found.to(chunked.hidden.dtype) for found in gradients.found()]


@linear_statistics.register_fake
def _(*operands):
    return Chunked(*operands).empty_rows()


@linear_gradient.register_fake
def _(*arguments):
    needed = arguments[-1]
    return [torch.empty_like(tensor) for tensor, need in zip(arguments[:3], needed, strict=True) if need]


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:7], output)
    ctx.settings = inputs[7:]


def _backward(ctx, grad):
    *tensors, rows = ctx.saved_tensors
    needed = list(ctx.needs_input_grad[:3])
    found = iter(torch.ops.ivgr.linear_gradient(*tensors, *ctx.settings, rows, grad, needed))
    return *(next(found) if need else None for need in needed), *[None] * 8


linear_statistics.register_autograd(_backward, setup_context=_save)


@torch.compiler.disable
def _with_loss(
    chunked: Chunked, token_loss: TokenLoss, kl: str | None, ref_logp: torch.Tensor | None
) -> TokenStatistics:
    """Statistics without gradient, and the summed loss, whose gradients are known already."""
    wanted = (chunked.hidden, chunked.weight, chunked.bias)
    needed = [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in wanted]
    with torch.no_grad():
        rows, gradients, losses = chunked.empty_rows(), HeadGradients(chunked, needed), []
        for chunk in chunked.slices():
            ref = None if ref_logp is None else ref_logp[chunk]
            rows[:, chunk], loss = _differentiate(chunked, chunk, gradients, token_loss, kl, ref)
            losses.append(loss)
        total = torch.stack(losses).sum() if losses else rows.sum()
    statistics = assemble(rows, kl, chunked.entropy, ref_logp)
    inputs = [tensor for tensor, need in zip(wanted, needed, strict=True) if need]
    return statistics._replace(loss=_KnownGradients.apply(total, gradients.found(), *inputs))


def _differentiate(
    chunked: Chunked,
    chunk: slice,
    gradients: HeadGradients,
    token_loss: TokenLoss,
    kl: str | None,
    ref_logp: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds a chunk's gradients; returns its statistics (8, n) and its summed loss."""
    logits, ref_logits = chunked.logits(chunk)
    rows = chunked.statistics(chunk, logits, ref_logits).requires_grad_(bool(gradients.found()))
    with torch.enable_grad():
        statistics = assemble(rows, kl, chunked.entropy, ref_logp)
        loss = token_loss(*statistics[:4], chunk).sum()
    if rows.requires_grad:
        (grad,) = torch.autograd.grad(loss, rows)
        gradients.add(chunk, chunked.logits_gradient(chunk, logits, ref_logits, rows.detach(), grad))
    return rows.detach(), loss.detach()


class _KnownGradients(torch.autograd.Function):
    """A scalar whose gradients with respect to some inputs are at hand."""

    @staticmethod
    def forward(ctx, value: torch.Tensor, gradients: list[torch.Tensor], *inputs: torch.Tensor):
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: torch.Tensor):
        """Scales them in place, so they serve one backward pass."""
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of token_loss were used up by an earlier backward pass")
        return None, None, *(gradient.mul_(grad) for gradient in gradients)
