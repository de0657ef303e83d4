"""The policy of a tool that asks it: its options in, model and encoder out."""

import torch
from transformers import PreTrainedModel

from ivgr.data.encode import QueryEncoder
from ivgr.data.prompts import Prompts
from ivgr.errors import UserError
from ivgr.policy.load import Pretrained
from ivgr.settings import Dtype


def load_policy(
    tool: str, model: str, dtype: Dtype, prompts: Prompts, max_prompt_tokens: int, max_pixels: int | None
) -> tuple[PreTrainedModel, QueryEncoder]:
    """The policy, on a GPU if there is one, and its encoder; UserError, naming the option of `tool`,
    if either cannot be had."""
    try:
        policy, processor = Pretrained(model, dtype, max_pixels=max_pixels).load()
    except UserError as error:
        reason = str(error).removeprefix("model.policy: ")
        option = "max_pixels" if reason.startswith("min_pixels") else "model"
        raise UserError(f"{tool} --{option}: {reason}") from error
    policy = policy.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return policy, QueryEncoder.of(policy.config, processor, prompts, max_prompt_tokens)
