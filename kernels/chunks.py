"""A head on chunks of tokens: GEMM to logits, and gradients of logits back through it."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import torch

from .dispatch import row_kernels
from .row_layout import ROWS


class LinearOperands(NamedTuple):
    """What the operators of the linear form take, in the order of their schema.

    hidden (N, H), weight (V, H) and bias (V,) of one dtype; the reference's likewise, for the
    exact KL only; ids (N,); scale, 1 / temperature; whether the entropy is wanted; the dtype
    of the logits; how many tokens make a chunk.
    """

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    ref_hidden: torch.Tensor | None
    ref_weight: torch.Tensor | None
    ref_bias: torch.Tensor | None
    ids: torch.Tensor
    scale: float
    entropy: bool
    dtype: torch.dtype
    size: int

    def empty_rows(self) -> torch.Tensor:
        """Room for the statistics (8, N)."""
        return self.hidden.new_empty(ROWS, len(self.ids), dtype=torch.float32)


class ChunkedHead:
    """Logits of the operands, and their gradients, a chunk of tokens at a time."""

    def __init__(self, operands: LinearOperands) -> None:
        self.operands = operands

    def slices(self) -> Iterator[slice]:
        size = self.operands.size
        for start in range(0, len(self.operands.ids), size):
            yield slice(start, start + size)

    @cached_property
    def _buffer(self) -> torch.Tensor:
        """One chunk's logits (1 or 2, n, V) of policy and reference, used again for every chunk."""
        operands = self.operands
        models = 1 if operands.ref_hidden is None else 2
        tokens = min(operands.size, len(operands.ids))
        return operands.hidden.new_empty(models, tokens, len(operands.weight), dtype=operands.dtype)

    def logits(self, chunk: slice) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The policy's (n, V), and the reference's where there is one; valid until the next
        chunk's."""
        operands = self.operands
        logits = _project(operands.hidden[chunk], operands.weight, operands.bias, self._buffer[0])
        if operands.ref_hidden is None or operands.ref_weight is None:
            return logits, None
        ref_hidden = operands.ref_hidden[chunk]
        return logits, _project(ref_hidden, operands.ref_weight, operands.ref_bias, self._buffer[1])

    def statistics(self, chunk: slice, logits: torch.Tensor, ref_logits: torch.Tensor | None) -> torch.Tensor:
        """(8, n), see `rows_torch.row_statistics`."""
        operands = self.operands
        return row_kernels(logits.device).row_statistics(
            logits, operands.ids[chunk], ref_logits, operands.scale, operands.entropy
        )

    def logits_gradient(
        self,
        chunk: slice,
        logits: torch.Tensor,
        ref_logits: torch.Tensor | None,
        rows: torch.Tensor,
        grad: torch.Tensor,
    ) -> torch.Tensor:
        """(n, V) in the dtype of the GEMMs: in place of the logits where that is theirs."""
        operands = self.operands
        dtype = operands.hidden.dtype
        out = logits if logits.dtype == dtype else torch.empty_like(logits, dtype=dtype)
        row_kernels(logits.device).row_gradient(
            logits, operands.ids[chunk], ref_logits, rows, grad, operands.scale, operands.entropy, out
        )
        return out


class HeadGradients:
    """Gradients of hidden, weight and bias, those that are `needed`; the latter two are summed
    over chunks in fp32."""

    def __init__(self, operands: LinearOperands, needed: Sequence[bool]) -> None:
        self.operands, weight = operands, operands.weight
        self.hidden = torch.empty_like(operands.hidden) if needed[0] else None
        self.weight = torch.zeros_like(weight, dtype=torch.float32) if needed[1] else None
        self.bias = weight.new_zeros(len(weight), dtype=torch.float32) if needed[2] else None

    def add(self, chunk: slice, gradient: torch.Tensor) -> None:
        """Takes in the gradient (n, V) of a chunk's logits."""
        if self.hidden is not None:
            torch.mm(gradient, self.operands.weight, out=self.hidden[chunk])
        if self.weight is not None:
            _accumulate(self.weight, gradient.T, self.operands.hidden[chunk])
        if self.bias is not None:
            self.bias += gradient.sum(0, dtype=torch.float32)

    def found(self) -> list[torch.Tensor]:
        """Returns the gradients that are needed, in order."""
        return [gradient for gradient in (self.hidden, self.weight, self.bias) if gradient is not None]


def _project(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, buffer: torch.Tensor
) -> torch.Tensor:
    """hidden @ weight.T + bias, in the dtype of `buffer` and at its beginning."""
    logits = buffer[: len(hidden)]
    if logits.dtype == hidden.dtype:
        torch.mm(hidden, weight.T, out=logits)
    elif hidden.is_cuda:
        torch.mm(hidden, weight.T, out_dtype=logits.dtype, out=logits)
    else:
        torch.mm(hidden.to(logits.dtype), weight.T.to(logits.dtype), out=logits)
    return logits if bias is None else logits.add_(bias)


def _accumulate(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """total += left @ right, in the fp32 of `total`."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))
