"""The policy: any HF image-text-to-text checkpoint, loaded with its processor."""

from pathlib import Path

import torch
from transformers import PreTrainedModel, ProcessorMixin

from ivgr.errors import UserError
from ivgr.policy.attention import use_tree_attention
from ivgr.policy.directory import read_config, read_model
from ivgr.policy.forward import stop_ids
from ivgr.policy.processor import read_processor
from ivgr.settings import Dtype, PositiveInt, checked

TINY = Path(__file__).parent / "tiny"
SETTING = "model.policy"

Shapes = dict[str, torch.Size]


def shapes_of(state: dict[str, torch.Tensor]) -> Shapes:
    return {name: tensor.shape for name, tensor in state.items()}


def find_mismatch(own: Shapes, saved: Shapes) -> str | None:
    """The first name that only one of them has, or that has another shape there."""
    return next((name for name in sorted(own | saved) if own.get(name) != saved.get(name)), None)


def refuse_other_policy(own: Shapes, saved: Shapes, path: Path | str) -> None:
    """UserError if the shapes that a checkpoint holds, by name, are not those of the run's policy."""
    odd = find_mismatch(own, saved)
    if odd is not None:
        raise UserError(
            f"checkpoint {path}: its policy differs from model.policy (first at {odd}); "
            "resume with the policy and the adapter it was made with"
        )


@checked("model.policy.")
class Pretrained:
    """A policy from a HF directory or hub id.

    Args:
        path: Directory, hub id, or "tiny" for the model shipped with ivgr.
        dtype: Weight dtype, "float32", "bfloat16" or "float16".
        attn_implementation: HF attention backend of the vision tower.
        min_pixels: Images of fewer pixels are enlarged; null leaves it to the model's processor.
        max_pixels: Images of more pixels are shrunk; null leaves it to the model's processor.
    """

    def __init__(
        self,
        path: str = "tiny",
        dtype: Dtype = "float32",
        attn_implementation: str = "sdpa",
        min_pixels: PositiveInt | None = None,
        max_pixels: PositiveInt | None = None,
    ) -> None:
        self.path, self.dtype, self.attn_implementation = path, dtype, attn_implementation
        self.min_pixels, self.max_pixels = min_pixels, max_pixels

    def load(self) -> tuple[PreTrainedModel, ProcessorMixin]:
        """The model and its processor; UserError if there are none, see `ivgr.policy.directory`."""
        folder = TINY if self.path == "tiny" else self.path
        config = read_config(folder, SETTING)
        processor = read_processor(folder, config, SETTING)
        model = read_model(folder, config, getattr(torch, self.dtype), self.attn_implementation, SETTING)
        stop_ids(model, processor.tokenizer)
        use_tree_attention(model)
        self._limit_pixels(processor)
        return model, processor

    def _limit_pixels(self, processor: ProcessorMixin) -> None:
        """Puts the pixel budget into the image processor; UserError if it is none."""
        if self.min_pixels is None and self.max_pixels is None:
            return
        images = processor.image_processor
        fewest = images.size["shortest_edge"] if self.min_pixels is None else self.min_pixels
        most = images.size["longest_edge"] if self.max_pixels is None else self.max_pixels
        token = (images.patch_size * images.merge_size) ** 2
        if not 0 < fewest <= most or most < token:
            raise UserError(
                f"model.policy: min_pixels {fewest} and max_pixels {most} leave no image size; "
                f"an image token covers {token} pixels"
            )
        images.size = {"shortest_edge": fewest, "longest_edge": most}
