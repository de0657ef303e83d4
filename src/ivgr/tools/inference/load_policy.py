"""The policy of a tool that asks it: its options in, model and encoder out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast, get_args

import torch
from transformers import PreTrainedModel

from ivgr.core.errors import UserError
from ivgr.core.prompts import Prompts
from ivgr.core.settings import Dtype
from ivgr.data.encode import QueryEncoder
from ivgr.models.model_directory import read_config
from ivgr.models.pretrained import SETTING, TINY, Pretrained


def load_policy(
    tool: str,
    model: str,
    dtype: Dtype | None,
    prompts: Prompts,
    max_prompt_tokens: int,
    max_pixels: int | None,
) -> tuple[PreTrainedModel, QueryEncoder]:
    """The policy, on a GPU if there is one and by default in the dtype it is saved in, and its encoder;
    UserError, naming the option of `tool`, if either cannot be had."""
    dtype = dtype or saved_dtype(tool, model)
    with _naming_the_option(tool):
        source = Pretrained(model, dtype, max_pixels=max_pixels)
        policy, encoder = policy_and_encoder(source, prompts, max_prompt_tokens)
    return policy.to(gpu_or_cpu()), encoder  # pyright: ignore[reportArgumentType]


def policy_and_encoder(
    source: Pretrained, prompts: Prompts, max_prompt_tokens: int = 8192
) -> tuple[PreTrainedModel, QueryEncoder]:
    """The policy of `source`, ready to answer on the CPU, and what encodes questions for it."""
    policy, processor = source.load()
    return policy.eval(), QueryEncoder.of(policy.config, processor, prompts, max_prompt_tokens)


def gpu_or_cpu() -> str:
    """The device of a tool that is told none."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def saved_dtype(tool: str, model: str) -> Dtype:
    """The dtype that `model` says its weights are saved in, float32 where it says none; UserError as of
    `load_policy`."""
    with _naming_the_option(tool):
        config = read_config(TINY if model == "tiny" else model, SETTING)
    for part in (config, config.get_text_config()):
        name = str(getattr(part, "dtype", None)).removeprefix("torch.")
        if name in get_args(Dtype):
            return cast(Dtype, name)
    return "float32"


@contextmanager
def _naming_the_option(tool: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        reason = str(error).removeprefix(f"{SETTING}: ")
        option = "max_pixels" if reason.startswith("min_pixels") else "model"
        raise UserError(f"{tool} --{option}: {reason}") from error
