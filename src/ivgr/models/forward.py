"""The calls into the stock HF model that every phase shares: rotary positions, hidden
states, head. Nothing of the model is patched."""

from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ivgr.core.errors import UserError
from ivgr.core.transfer import send
from ivgr.models.registry import find_family

MESSAGE = "A message of the assistant."


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
    of `tree_mask`, with images of sizes that lie on the host; options reach the attention of every layer."""
    if image_grid_thw is not None and find_family(model.config.model_type).grid_inputs is None:
        image_grid_thw = send(image_grid_thw, ids.device)
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
    """Vision tokens: never to be sampled, since a sampled one would promise an image. One beyond the
    vocabulary, a default that config.json does not name, never is."""
    config, words = model.config, model.config.get_text_config().vocab_size
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    found = {getattr(config, name, None) for name in names}
    return sorted(token for token in found if token is not None and token < words)


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a response, in rising order: those of generation_config.json, the tokenizer's
    end of text and the chat template's end of a turn, which fine-tuning often lets disagree.
    UserError if there is none, or one is no token."""
    own: Any = model.generation_config.eos_token_id
    named = [] if own is None else own if isinstance(own, list) else [own]
    odd = next((one for one in named if isinstance(one, bool) or not isinstance(one, int)), None)
    if odd is not None:
        raise UserError(
            f"model.policy: {model.name_or_path!r} has a generation_config.json whose eos_token_id {odd!r} "
            "is no number of a token"
        )
    end: Any = tokenizer.eos_token_id
    stops = {*named, end, end_of_turn(tokenizer)} - {None}
    if not stops:
        raise UserError(
            f"model.policy: {model.name_or_path!r} names no token that ends a response; set eos_token_id in "
            "generation_config.json, or eos_token in tokenizer_config.json"
        )
    return sorted(stops)


def not_finite(where: str, whose: str = "policy") -> UserError:
    """Returns the error for logits that are NaN or infinite, met at `where`."""
    return UserError(
        f"the {whose}'s logits are not finite ({where}): its weights are broken, go back to an earlier "
        "checkpoint; or float16 is too narrow for it, take bfloat16 or float32"
    )


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the chat template writes behind an assistant's message; without one the
    tokenizer's end of text. Demonstrations end with it."""
    end: Any = tokenizer.eos_token_id
    if tokenizer.chat_template is None:
        return end
    chat = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("user", "?"), ("assistant", MESSAGE))
    ]
    written = str(tokenizer.apply_chat_template(chat, tokenize=False))
    ending = tokenizer(written.rpartition(MESSAGE)[2], add_special_tokens=False).input_ids
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return next((one for one in ending if one in special), end)
