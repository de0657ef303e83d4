"""Log-prob gathering and token-level KL on logits, in plain PyTorch."""

from typing import NamedTuple

import torch

from .estimators import kl_estimate


class TokenStatistics(NamedTuple):
    """fp32 tensors of shape (N,); what was not asked for is None."""

    logp: torch.Tensor
    ref_logp: torch.Tensor | None = None
    kl: torch.Tensor | None = None
    entropy: torch.Tensor | None = None


def fused_logprob_kl(
    logits: torch.Tensor,
    ids: torch.Tensor,
    *,
    ref_logits: torch.Tensor | None = None,
    ref_logp: torch.Tensor | None = None,
    temperature: float = 1.0,
    kl: str | None = "k3",
    entropy: bool = False,
) -> TokenStatistics:
    """Statistics of each sampled token under softmax(logits / temperature).

    Args:
        logits: Policy logits (N, V), any float dtype; reduced in fp32.
        ids: Sampled tokens (N,).
        ref_logits: Reference logits (N, V); needed for kl="exact".
        ref_logp: Reference log-probs (N,), in place of ref_logits.
        temperature: Divides both streams' logits.
        kl: "k1", "k2", "k3" (see `kl_estimate`), "exact" (sum over the vocabulary) or None;
            without a reference there is none of the first three.
        entropy: Whether to return the policy's entropy.

    Raises:
        ValueError: kl="exact" without ref_logits, or an unknown `kl`.
    """
    log_p = torch.log_softmax(logits.float() / temperature, -1)
    logp = log_p.gather(-1, ids[:, None])[:, 0]
    log_r = None
    if ref_logits is not None:
        log_r = torch.log_softmax(ref_logits.float() / temperature, -1)
        ref_logp = log_r.gather(-1, ids[:, None])[:, 0]
    divergence = None
    if kl == "exact":
        if log_r is None:
            raise ValueError('kl="exact" needs ref_logits')
        divergence = (log_p.exp() * (log_p - log_r)).sum(-1)
    elif kl is not None and ref_logp is not None:
        divergence = kl_estimate(logp, ref_logp, kl)
    spread = -(log_p.exp() * log_p).sum(-1) if entropy else None
    return TokenStatistics(logp, ref_logp, divergence, spread)
