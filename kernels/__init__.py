"""Per-token log-prob, KL to the reference and entropy of both streams' packed tokens.

Shipped as the package `ivgr.kernels`. Run from the repository root, this folder also answers
to the top-level name `kernels`, which transformers asks for its version: under that name it
is empty, so that operators are registered once.
"""

__version__ = "0.0.1"

if __name__ == "ivgr.kernels":
    from .kl_estimators import KL_ESTIMATORS, LARGEST_EXPONENT, kl_estimate
    from .linear import fused_linear_logprob_kl
    from .logits import fused_logprob_kl
    from .token_statistics import TokenStatistics

    __all__ = [
        "KL_ESTIMATORS",
        "LARGEST_EXPONENT",
        "TokenStatistics",
        "fused_linear_logprob_kl",
        "fused_logprob_kl",
        "kl_estimate",
    ]
