"""Estimators of KL(policy‖reference) from the sampled token's two log-probs.

Source: J. Schulman, "Approximating KL divergence" (http://joschu.net/blog/kl-approx.html).
"""

import torch

KL_ESTIMATORS = ("k1", "k2", "k3")


def kl_estimate(logp: torch.Tensor, ref_logp: torch.Tensor, kind: str) -> torch.Tensor:
    """Per-token estimate, the shape of `logp`; with d = logp - ref_logp: k1 = d,
    k2 = d²/2, k3 = exp(-d) + d - 1 (never negative). ValueError for any other `kind`."""
    d = logp - ref_logp
    if kind == "k1":
        return d
    if kind == "k2":
        return d.square() / 2
    if kind == "k3":
        return torch.expm1(-d) + d
    raise ValueError(f"kl is {kind!r}, must be one of {', '.join(KL_ESTIMATORS)} or exact")
