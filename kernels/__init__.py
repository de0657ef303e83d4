"""Per-token log-prob, KL to the reference and entropy of both streams' packed tokens.

Shipped as the package `ivgr.kernels`. Imports torch alone, so that it loads anywhere.
`__version__` is set because, run from the repository root, this folder also answers to
the top-level name `kernels`, which transformers asks for its version.
"""

from .estimators import KL_ESTIMATORS, kl_estimate
from .logprob import TokenStatistics, fused_logprob_kl

__version__ = "0.0.1"
__all__ = ["KL_ESTIMATORS", "TokenStatistics", "fused_logprob_kl", "kl_estimate"]
