"""The roads from logits, or from hidden states, to each token's loss that are compared.

The loss is the same for all: -ratio, the old policy being the present one, + KL_WEIGHT · KL.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, cast

import torch

from ivgr.core.settings import Dtype, dtype_of
from ivgr.kernels import fused_linear_logprob_kl, fused_logprob_kl, kl_estimate

KL_WEIGHT = 0.01
SEQUENCES = 8  # a peer works sequence by sequence


@dataclass
class Inputs:
    """hidden, ref_hidden (N, H), weight, ref_weight (V, H), ids (N,); logits, ref_logits
    (N + 1, V) while they are made: a peer drops the last row itself."""

    hidden: torch.Tensor
    weight: torch.Tensor
    ref_hidden: torch.Tensor
    ref_weight: torch.Tensor
    ids: torch.Tensor
    logits: torch.Tensor | None = None
    ref_logits: torch.Tensor | None = None

    @staticmethod
    def draw(tokens: int, vocabulary: int, width: int, device: torch.device, dtype: Dtype) -> "Inputs":
        """Random states and heads; the reference is close to the policy."""
        generator = torch.Generator(device).manual_seed(0)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, device=device)

        hidden, weight = random(tokens, width), random(vocabulary, width) * 3 * width**-0.5
        near = hidden + 0.1 * random(tokens, width), weight + 0.1 * width**-0.5 * random(vocabulary, width)
        states = (tensor.to(dtype_of(dtype)) for tensor in (hidden, weight, *near))
        ids = torch.randint(vocabulary, (tokens,), generator=generator, device=device)
        return Inputs(*states, ids)  # pyright: ignore[reportCallIssue]

    def make_logits(self) -> None:
        padded = torch.cat([self.hidden, self.hidden[:1]]), torch.cat([self.ref_hidden, self.ref_hidden[:1]])
        self.logits = padded[0] @ self.weight.T
        self.ref_logits = padded[1] @ self.ref_weight.T

    @staticmethod
    def made(logits: torch.Tensor | None) -> torch.Tensor:
        assert logits is not None, "make_logits comes first"
        return logits

    def drop_logits(self) -> None:
        self.logits = self.ref_logits = None

    def reference(self) -> list[torch.Tensor]:
        """The reference's logits, or hidden states and head."""
        return [self.ref_hidden, self.ref_weight] if self.ref_logits is None else [self.ref_logits[:-1]]

    def leaves(self, road: "Implementation") -> list[torch.Tensor]:
        """Returns fresh copies of the tensors that the implementation differentiates."""
        if self.logits is None:
            wanted = [self.hidden, self.weight]
        else:
            wanted = [self.logits if road.padded else self.logits[:-1]]
        return [tensor.detach().requires_grad_() for tensor in wanted]


@dataclass(frozen=True)
class Implementation:
    """`loss(inputs, leaves, kl)` gives losses to be summed. needs: the package it comes from;
    gpu_only; exact: it offers the exact KL; padded: it wants the row more; recomputes: the
    backward pass makes the logits again; forward: it has a forward pass of its own."""

    loss: Callable[[Inputs, list[torch.Tensor], str], torch.Tensor]
    needs: str | None = None
    gpu_only: bool = False
    exact: bool = True
    padded: bool = False
    recomputes: bool = False
    forward: bool = True


def available(road: Implementation, device: torch.device, kl: str) -> bool:
    installed = road.needs is None or find_spec(road.needs) is not None
    return installed and (device.type == "cuda" or not road.gpu_only) and (road.exact or kl == "k3")


def _token_loss(
    logp: torch.Tensor,
    ref_logp: torch.Tensor | None,
    kl: torch.Tensor | None,
    entropy: torch.Tensor | None = None,
    rows: slice = slice(None),
) -> torch.Tensor:
    return KL_WEIGHT * cast(torch.Tensor, kl) - (logp - logp.detach()).exp()


def _selected(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return logits.float().log_softmax(-1).gather(1, ids[:, None])[:, 0]


def _exact_loss(logits: torch.Tensor, ref_logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    log_p, log_r = logits.float().log_softmax(-1), ref_logits.float().log_softmax(-1)
    return _token_loss(log_p.gather(1, ids[:, None])[:, 0], None, (log_p.exp() * (log_p - log_r)).sum(-1))


def _eager(leaves: list[torch.Tensor], reference: list[torch.Tensor], ids: torch.Tensor, kl: str) -> Any:
    """Both: logits, or hidden states and head."""

    def logits(tensors: Any) -> Any:
        return tensors[0] if len(tensors) == 1 else tensors[0] @ tensors[1].T

    if kl == "exact":
        with torch.no_grad():
            ref_logits = logits(reference)
        return _exact_loss(logits(leaves), ref_logits, ids)
    with torch.no_grad():
        ref_logp = _selected(logits(reference), ids)
    logp = _selected(logits(leaves), ids)
    return _token_loss(logp, ref_logp, kl_estimate(logp, ref_logp, kl))


@cache
def _compiled() -> Callable:
    return torch.compile(_eager)


def _plain(inputs: Inputs, leaves: list[torch.Tensor], kl: str) -> torch.Tensor:
    return _eager(leaves, inputs.reference(), inputs.ids, kl)


def _compile(inputs: Inputs, leaves: list[torch.Tensor], kl: str) -> torch.Tensor:
    return _compiled()(leaves, inputs.reference(), inputs.ids, kl)


def _trl(inputs: Inputs, leaves: list[torch.Tensor], kl: str) -> torch.Tensor:
    from trl.trainer.utils import selective_log_softmax

    ref_logp = selective_log_softmax(inputs.made(inputs.ref_logits)[:-1], inputs.ids)
    logp = selective_log_softmax(leaves[0], inputs.ids)
    return _token_loss(logp, ref_logp, kl_estimate(logp, ref_logp, kl))


def _trl_linear(inputs: Inputs, leaves: list[torch.Tensor], kl: str) -> torch.Tensor:
    """The head of TRL's GRPOTrainer."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as CHUNK

    def logp(hidden: torch.Tensor, weight: torch.Tensor) -> Any:
        settings = (1.0, CHUNK, None, 1.0, ("log_probs",))
        return ChunkedLogProbFunction.apply(hidden, weight, None, inputs.ids, *settings)[0]

    with torch.no_grad():
        ref_logp = logp(inputs.ref_hidden, inputs.ref_weight)
    own = logp(*leaves)
    return _token_loss(own, ref_logp, kl_estimate(own, ref_logp, kl))


def _liger(inputs: Inputs, leaves: list[torch.Tensor], kl: str) -> torch.Tensor:
    from liger_kernel.transformers.grpo_loss import fused_selective_log_softmax, triton_grpo_loss

    ids, advantage = inputs.ids[None], torch.ones(1, device=inputs.ids.device)
    ref_logp = fused_selective_log_softmax(inputs.made(inputs.ref_logits)[None], ids, 1.0)
    options = {"temperature": 1.0, "beta": KL_WEIGHT, "inplace": False}
    return triton_grpo_loss(leaves[0][None], None, ref_logp, ids, advantage, **options)[0]


def _liger_linear(inputs: Inputs, leaves: list[torch.Tensor], kl: str) -> torch.Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    count, width = inputs.hidden.shape
    rows = SEQUENCES if count % SEQUENCES == 0 else 1
    ids = inputs.ids.view(rows, -1)
    ones = torch.ones(rows, device=ids.device)
    hidden, ref_hidden = (x.view(rows, -1, width) for x in (leaves[0], inputs.ref_hidden))
    return LigerFusedLinearGRPOLoss(beta=KL_WEIGHT)(
        hidden, leaves[1], ids, torch.ones_like(ids), ones, ref_input=ref_hidden, ref_weight=inputs.ref_weight
    )[0]


def _ours(inputs: Inputs, leaves: list[torch.Tensor], kl: str) -> torch.Tensor:
    reference = inputs.made(inputs.ref_logits)[:-1]
    return _token_loss(*fused_logprob_kl(leaves[0], inputs.ids, ref_logits=reference, kl=kl)[:3])


def _reference_of(inputs: Inputs) -> dict[str, Any]:
    return {"ref_hidden": inputs.ref_hidden, "ref_weight": inputs.ref_weight}


def _ours_linear(inputs: Inputs, leaves: list[torch.Tensor], kl: str) -> torch.Tensor:
    hidden, weight = leaves
    found = fused_linear_logprob_kl(hidden, weight, inputs.ids, **_reference_of(inputs), kl=kl)
    return _token_loss(*found[:3])


def _ours_known(inputs: Inputs, leaves: list[torch.Tensor], kl: str) -> torch.Tensor:
    hidden, weight = leaves
    reference = _reference_of(inputs)
    found = fused_linear_logprob_kl(hidden, weight, inputs.ids, **reference, kl=kl, token_loss=_token_loss)
    return cast(torch.Tensor, found.loss)


LOGITS = {
    "eager": Implementation(_plain),
    "torch.compile": Implementation(_compile, gpu_only=True),
    "liger-kernel": Implementation(_liger, needs="liger_kernel", gpu_only=True, exact=False, padded=True),
    "TRL": Implementation(_trl, needs="trl", exact=False),
    "ivgr": Implementation(_ours),
}
LINEAR = {
    "eager": Implementation(_plain),
    "torch.compile": Implementation(_compile, gpu_only=True),
    "liger-kernel": Implementation(
        _liger_linear, needs="liger_kernel", gpu_only=True, exact=False, forward=False
    ),
    "TRL": Implementation(_trl_linear, needs="trl", exact=False, recomputes=True),
    "ivgr": Implementation(_ours_linear, recomputes=True),
    "ivgr, token_loss": Implementation(_ours_known, forward=False),
}
