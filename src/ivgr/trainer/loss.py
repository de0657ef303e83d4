"""The token loss: PPO-clip with asymmetric bounds and a dual clip, plus a KL penalty.

Sources: PPO (arXiv 1707.06347), dual clip (arXiv 1912.09729), clip-higher (DAPO, arXiv
2503.14476), iVGR (arXiv 2605.31096); truncated importance sampling between rollout engine and
trainer (Yao, Liu et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL
Training"). Pure functions; every tensor has shape (N,), one entry per response token of either
stream.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from ivgr.core.settings import AboveOne, NonNegativeFloat, PositiveFloat, Share, checked
from ivgr.kernels import LARGEST_EXPONENT


@checked("model.update.loss.")
@dataclass(frozen=True, kw_only=True)
class PolicyLossConfig:
    """Settings of the loss."""

    clip_low: Share = 0.2
    """The ratio is clipped from below at 1 - clip_low."""

    clip_high: NonNegativeFloat = 0.28
    """The ratio is clipped from above at 1 + clip_high."""

    dual_clip: AboveOne = 3.0
    """A negative advantage costs at most dual_clip times itself."""

    kl_weight: NonNegativeFloat = 1e-2
    """β, the weight of the KL to the reference."""

    kl: Literal["k1", "k2", "k3", "exact"] = "k3"
    """Estimator of the KL."""

    log_ratio_limit: PositiveFloat | None = None
    """Clamp of the log-ratio to ± this (20 in the paper's code); null leaves it alone up to 80, where float32
    is near its end."""

    kl_limit: PositiveFloat | None = None
    """The KL estimate of a token counts at most this, without gradient beyond it (10 in the paper's code);
    null leaves it alone."""

    importance_cap: PositiveFloat | None = None
    """Each token's loss, KL included, is multiplied by the probability that the trainer gave it before the
    updates over the one that the rollout engine recorded, at most this; null leaves it alone."""


class TokenLoss(NamedTuple):
    """loss, ratio fp32 (N,); clipped_low, clipped_high bool (N,): where a clip was active.
    With importance_cap also importance fp32 (N,), the factor of each token's loss, and
    importance_capped bool (N,)."""

    loss: torch.Tensor
    ratio: torch.Tensor
    clipped_low: torch.Tensor
    clipped_high: torch.Tensor
    importance: torch.Tensor | None = None
    importance_capped: torch.Tensor | None = None


def policy_loss(
    logp: torch.Tensor,
    old_logp: torch.Tensor,
    advantage: torch.Tensor,
    kl: torch.Tensor,
    settings: PolicyLossConfig,
    rollout_logp: torch.Tensor | None = None,
) -> TokenLoss:
    """Returns the loss of each token; training minimises its mean over all valid tokens.
    rollout_logp, the log-probs that the rollout engine recorded, is needed for importance_cap only."""
    ratio = _ratio(logp, old_logp, settings.log_ratio_limit or LARGEST_EXPONENT)
    if settings.kl_limit is not None:
        kl = kl.clamp(max=settings.kl_limit)
    clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    surrogate = torch.maximum(-advantage * ratio, -advantage * clipped)
    bounded = torch.where(advantage < 0, surrogate.clamp(max=-settings.dual_clip * advantage), surrogate)
    result = TokenLoss(
        loss=bounded + settings.kl_weight * kl,
        ratio=ratio.detach(),
        clipped_low=(ratio < 1 - settings.clip_low) & (advantage < 0),
        clipped_high=(ratio > 1 + settings.clip_high) & (advantage > 0),
    )
    if settings.importance_cap is None:
        return result
    assert rollout_logp is not None, "importance_cap compares with the rollout engine"
    return _correct_importance(result, _ratio(old_logp, rollout_logp).detach(), settings.importance_cap)


def _ratio(logp: torch.Tensor, old_logp: torch.Tensor, limit: float = LARGEST_EXPONENT) -> torch.Tensor:
    """Returns exp(logp - old_logp), kept finite, so that an advantage of 0 or a clip gives 0 and not NaN."""
    limit = min(limit, LARGEST_EXPONENT)
    return (logp - old_logp).clamp(-limit, limit).exp()


def _correct_importance(result: TokenLoss, importance: torch.Tensor, cap: float) -> TokenLoss:
    """Weights `result` so that it is an expectation under the trainer's policy, although the rollout engine
    drew the tokens."""
    capped = importance.clamp(max=cap)
    return result._replace(loss=capped * result.loss, importance=capped, importance_capped=importance > cap)
