"""The policy: any HF image-text-to-text checkpoint, loaded with its processor."""

from pathlib import Path
from typing import Protocol

from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from ivgr.core.errors import UserError
from ivgr.core.settings import Dtype, PositiveInt, checked, dtype_of
from ivgr.models.attention import set_attention
from ivgr.models.forward import stop_ids
from ivgr.models.model_directory import read_config, read_model
from ivgr.models.processor import read_processor
from ivgr.models.stored_weights import StoredWeights, read_skeleton

TINY = Path(__file__).parents[1] / "toy" / "tiny"
SETTING = "model.policy"


class PolicySource(Protocol):
    """A source of the policy."""

    def load(self) -> tuple[PreTrainedModel, ProcessorMixin]:
        """The model and its processor."""
        ...


@checked("model.policy.")
class Pretrained:
    """A policy from a HF directory or hub id.

    Args:
        path: Directory, hub id, or "tiny" for the model shipped with ivgr.
        dtype: Weight dtype, "float32", "bfloat16" or "float16".
        attn_implementation: HF attention backend of the vision tower; sdpa takes all windows of one
            length together.
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
        self.path = path
        self.dtype: Dtype = dtype
        self.attn_implementation = attn_implementation
        self.min_pixels = min_pixels
        self.max_pixels = max_pixels

    def load(self) -> tuple[PreTrainedModel, ProcessorMixin]:
        """The model and its processor; UserError if there are none, see `ivgr.models.model_directory`."""
        folder, config, processor = self._read_parts()
        model = read_model(folder, config, dtype_of(self.dtype), self.attn_implementation, SETTING)
        return self._set_up(model, processor), processor

    def load_skeleton(self) -> tuple[PreTrainedModel, ProcessorMixin, StoredWeights | None]:
        """What `load` gives, with weights on the meta device, and where they are stored: see
        `ivgr.models.stored_weights`."""
        folder, config, processor = self._read_parts()
        model, weights = read_skeleton(
            folder, config, dtype_of(self.dtype), self.attn_implementation, SETTING
        )
        return self._set_up(model, processor), processor, weights

    def _read_parts(self) -> tuple[Path | str, PreTrainedConfig, ProcessorMixin]:
        folder = TINY if self.path == "tiny" else self.path
        config = read_config(folder, SETTING)
        return folder, config, read_processor(folder, config, SETTING)

    def _set_up(self, model: PreTrainedModel, processor: ProcessorMixin) -> PreTrainedModel:
        stop_ids(model, processor.tokenizer)
        set_attention(model)
        self._limit_pixels(processor)
        return model

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


def load_skeleton(source: PolicySource) -> tuple[PreTrainedModel, ProcessorMixin, StoredWeights | None]:
    """The model of `source`, its processor, and where its weights are stored if they are still to be read: a
    class of the user's own loads them itself, one derived from `Pretrained` too."""
    return source.load_skeleton() if type(source) is Pretrained else (*source.load(), None)
