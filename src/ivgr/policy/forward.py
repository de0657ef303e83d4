"""The calls into the stock HF model that every phase shares: rotary positions, hidden
states, head. Nothing of the model is patched."""

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedModel

from ivgr.families.registry import find_family


def prompt_positions(model: PreTrainedModel, ids: torch.Tensor, grid: torch.Tensor | None) -> torch.Tensor:
    """Rotary positions (3, P) of a prompt ids (P,) with images of `grid` (images, 3)."""
    if grid is None:
        return torch.arange(len(ids), device=ids.device).expand(3, -1)
    return find_family(model.config.model_type).positions(model, ids, grid)


def hidden_states(
    model: PreTrainedModel,
    ids: torch.Tensor,
    positions: torch.Tensor,
    mask: torch.Tensor | BlockMask,
    pixel_values: torch.Tensor | None = None,
    image_grid_thw: torch.Tensor | None = None,
    **options,
) -> torch.Tensor:
    """Last hidden states (B, L, H) of ids (B, L) at rotary positions (3, B, L), under a mask
    of `tree_mask`; options reach the attention of every layer."""
    output = model.model(
        input_ids=ids,
        position_ids=positions,
        attention_mask=mask,
        pixel_values=pixel_values,
        image_grid_thw=image_grid_thw,
        use_cache=False,
        **options,
    )
    return output.last_hidden_state


def banned_ids(model: PreTrainedModel) -> list[int]:
    """Vision tokens: never to be sampled, since a sampled one would promise an image."""
    config = model.config
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return sorted({getattr(config, name) for name in names if getattr(config, name, None) is not None})


def stop_ids(model: PreTrainedModel) -> list[int]:
    """Tokens that end a response."""
    ids = model.generation_config.eos_token_id
    return [ids] if isinstance(ids, int) else list(ids)
