"""The attention of a whole model: by tree in the language model, by windows in the vision tower."""

from transformers import PreTrainedModel

from ivgr.models.tree_attention import use_tree_attention
from ivgr.models.vision_attention import use_window_attention


def set_attention(model: PreTrainedModel) -> None:
    """Lets the language model attend by tree, and the vision tower, unless it has another implementation
    than torch's, by windows."""
    use_tree_attention(model)
    use_window_attention(model)
