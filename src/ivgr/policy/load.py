"""The policy: any HF image-text-to-text checkpoint, loaded with its processor."""

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from ivgr.errors import UserError
from ivgr.policy.attention import use_tree_attention

TINY = Path(__file__).parent / "tiny"


class Pretrained:
    """A policy from a HF directory or hub id.

    Args:
        path: Directory, hub id, or "tiny" for the model shipped with ivgr.
        dtype: Weight dtype, a torch name such as "float32" or "bfloat16".
        attn_implementation: HF attention backend of the vision tower.
    """

    def __init__(self, path: str = "tiny", dtype: str = "float32", attn_implementation: str = "sdpa") -> None:
        self.path, self.dtype, self.attn_implementation = path, dtype, attn_implementation

    def load(self) -> tuple[PreTrainedModel, ProcessorMixin]:
        """The model and its processor; UserError if the checkpoint cannot be found or read."""
        folder = TINY if self.path == "tiny" else self.path
        try:
            model = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=getattr(torch, self.dtype), attn_implementation=self.attn_implementation
            )
            use_tree_attention(model)
            return model, AutoProcessor.from_pretrained(folder)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"model.policy: {str(self.path)!r} is no image-text-to-text model ({reason[:200]})"
            ) from error
