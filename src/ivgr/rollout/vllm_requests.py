"""The requests to vLLM and their results: a group's prompt out, rollouts in."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ivgr.core.errors import UserError
from ivgr.core.query import Group, Query, Rollout
from ivgr.models.forward import not_finite


def make_prompt(model: PreTrainedModel, query: Query, group: Group, limit: int) -> dict[str, Any]:
    """The vLLM `TokensPrompt` of a group, with one token an image, since vLLM puts in the others
    itself; UserError for more than `limit` tokens."""
    ids = torch.cat([query.prefix, group.instruction])
    if len(ids) > limit:
        raise UserError(
            f"sample {query.sample.id}: its {group.stream} prompt has {len(ids)} tokens, more than "
            f"model.engine.max_prompt_tokens {limit}; raise the limit"
        )
    if query.image_grid_thw is None:
        return {"prompt_token_ids": ids.tolist()}
    counts = query.image_grid_thw.prod(-1) // model.config.vision_config.spatial_merge_size**2
    return {
        "prompt_token_ids": fold_images(ids, model.config.image_token_id, counts).tolist(),
        "multi_modal_data": {"image": query.sample.open_images()},
    }


def fold_images(ids: torch.Tensor, image_token: int, counts: torch.Tensor) -> torch.Tensor:
    """`ids` (P,) with the counts[i] tokens of image i, in order, folded into its first."""
    places = (ids == image_token).nonzero()[:, 0]
    keep = ids != image_token
    keep[places[counts.cumsum(0) - counts]] = True
    return ids[keep]


def check_expansion(query: Query, group: Group, found: list[int]) -> None:
    """UserError unless vLLM read the very prompt that the policy is trained on."""
    ids = torch.cat([query.prefix, group.instruction]).tolist()
    if list(found) != ids:
        raise UserError(
            f"sample {query.sample.id}: its {group.stream} prompt has {len(found)} tokens in vLLM and "
            f"{len(ids)} in the policy; give model.engine.options.mm_processor_kwargs the size "
            "(shortest_edge, longest_edge) of the policy's own image processor"
        )


def read_completion(
    completion: Any, tokenizer: PreTrainedTokenizerBase, stops: list[int], greedy: bool, opened: str = ""
) -> Rollout:
    """The rollout of a vLLM `CompletionOutput` whose log-probs are raw and flat, its text behind what
    the prompt has `opened`; UserError if they are not finite."""
    tokens = torch.tensor(list(completion.token_ids))
    logp = torch.tensor(completion.logprobs.logprobs, dtype=torch.float32)
    if not logp.isfinite().all():
        raise not_finite("in a response of vLLM")
    return Rollout(
        tokens=tokens,
        logp=logp,
        sampling_logp=torch.zeros_like(logp) if greedy else torch.full_like(logp, torch.nan),
        text=opened + str(tokenizer.decode(tokens, skip_special_tokens=True)),
        truncated=int(tokens[-1]) not in stops,
    )
