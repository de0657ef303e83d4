"""The policy: any HF image-text-to-text checkpoint, loaded with its processor."""

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from ivgr.errors import UserError
from ivgr.policy.attention import use_tree_attention

TINY = Path(__file__).parent / "tiny"


def refuse_other_policy(own: dict[str, torch.Size], saved: dict[str, torch.Size]) -> None:
    """UserError if the shapes that a checkpoint holds, by name, are not those of the run's policy."""
    odd = sorted(name for name in own.keys() | saved.keys() if own.get(name) != saved.get(name))
    if odd:
        raise UserError(
            f"checkpoint: its policy differs from model.policy (first at {odd[0]}); "
            "resume with the policy it was made with"
        )


class Pretrained:
    """A policy from a HF directory or hub id.

    Args:
        path: Directory, hub id, or "tiny" for the model shipped with ivgr.
        dtype: Weight dtype, a torch name such as "float32" or "bfloat16".
        attn_implementation: HF attention backend of the vision tower.
    """

    def __init__(self, path: str = "tiny", dtype: str = "float32", attn_implementation: str = "sdpa") -> None:
        self.path = TINY if path == "tiny" else path
        self.dtype, self.attn_implementation = dtype, attn_implementation

    def load(self) -> tuple[PreTrainedModel, ProcessorMixin]:
        """The model and its processor; UserError if the checkpoint cannot be found or read."""
        try:
            model = AutoModelForImageTextToText.from_pretrained(
                self.path, dtype=getattr(torch, self.dtype), attn_implementation=self.attn_implementation
            )
            use_tree_attention(model)
            return model, AutoProcessor.from_pretrained(self.path)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"model.policy: {str(self.path)!r} is no image-text-to-text model ({reason[:200]})"
            ) from error
