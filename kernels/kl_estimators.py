"""Estimators of KL(policy‖reference) from the sampled token's two log-probs.

Source: J. Schulman, "Approximating KL divergence" (http://joschu.net/blog/kl-approx.html).
"""

import torch

KL_ESTIMATORS = ("k1", "k2", "k3")
LARGEST_EXPONENT = 80.0  # e^80 and its multiples are still finite in float32


def kl_estimate(logp: torch.Tensor, ref_logp: torch.Tensor, kind: str) -> torch.Tensor:
    """Per-token estimate, the shape of `logp`; with d = logp - ref_logp: k1 = d,
    k2 = d²/2, k3 = exp(-d) + d - 1 (never negative), its exponent at most `LARGEST_EXPONENT`, so
    that loss and gradient stay finite. ValueError for any other `kind`."""
    d = logp - ref_logp
    if kind == "k1":
        return d
    if kind == "k2":
        return d.square() / 2
    if kind == "k3":
        return torch.expm1((-d).clamp(max=LARGEST_EXPONENT)) + d
    raise ValueError(f"kl is {kind!r}, must be one of {', '.join(KL_ESTIMATORS)} or exact")
