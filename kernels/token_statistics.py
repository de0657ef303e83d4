"""The result of both forms, and its assembly from the rows of a kernel."""

from typing import Any, NamedTuple

import torch

from .kl_estimators import KL_ESTIMATORS, kl_estimate
from .row_layout import RESULTS


class TokenStatistics(NamedTuple):
    """fp32 tensors (N,), in nats; what was not asked for is None.

    logp, ref_logp: of the sampled token; kl: KL(policy‖reference), estimated or exact;
    entropy: the policy's. means: the same four as means (S,) over each stream's tokens.
    loss: the sum of `token_loss` over all tokens, a scalar.
    """

    logp: torch.Tensor
    ref_logp: torch.Tensor | None = None
    kl: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    means: "TokenStatistics | None" = None
    loss: torch.Tensor | None = None


def check(kl: str | None, temperature: float, has_ref_rows: bool, needed: str) -> None:
    """ValueError for an unknown `kl`, exact KL without `needed`, or a temperature that is
    not positive."""
    if kl not in (None, "exact", *KL_ESTIMATORS):
        raise ValueError(f"kl is {kl!r}, must be one of {', '.join(KL_ESTIMATORS)} or exact")
    if kl == "exact" and not has_ref_rows:
        raise ValueError(f'kl="exact" needs {needed}')
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, must be positive")


def assemble(
    rows: torch.Tensor, kl: str | None, entropy: bool, ref_logp: torch.Tensor | None
) -> TokenStatistics:
    """Names the rows (8, N) of `row_statistics`; k1, k2 and k3 are made here."""
    logp, exact_ref_logp, divergence, own_entropy = rows[RESULTS].unbind()
    if kl == "exact":
        ref_logp = exact_ref_logp.detach()
    else:
        divergence = None if kl is None or ref_logp is None else kl_estimate(logp, ref_logp, kl)
    return TokenStatistics(logp, ref_logp, divergence, own_entropy if entropy else None)


def with_means(
    statistics: TokenStatistics, stream: torch.Tensor | None, streams: int, ids: torch.Tensor
) -> TokenStatistics:
    """Adds the means over each stream; `stream` (N,) is 0 … streams-1, or negative for none.

    A sum over a fixed layout, so the same input gives the same bits. A stream without
    tokens has mean 0.
    """
    if stream is None:
        return statistics
    member = (stream == torch.arange(streams, device=stream.device)[:, None]) & (ids >= 0)
    count = member.sum(-1).clamp(min=1)

    def mean(value: Any) -> Any:
        return None if value is None else torch.where(member, value, 0.0).sum(-1) / count

    logp, ref_logp, kl, entropy = map(mean, statistics[:4])
    return statistics._replace(means=TokenStatistics(logp, ref_logp, kl, entropy))
