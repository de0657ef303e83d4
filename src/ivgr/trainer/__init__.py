"""Training: reinforcement learning, the cold start, and what both do to a policy's weights."""

from ivgr.core.face import lazy_face

NAMES = {"FSDP2": "fsdp_strategy", "FrozenReference": "reference", "IVGR": "rl_module", "SFT": "sft_module"}
__all__ = list(NAMES)
__getattr__ = lazy_face(__name__, NAMES)
