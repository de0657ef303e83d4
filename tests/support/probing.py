"""What the tests of the probes share: random models of every family with a processor, responses that
were never sampled, and a vision tower whose tokens are known."""

from dataclasses import replace

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ivgr.core.prompts import TEXTUAL, Prompts
from ivgr.core.query import Rollout
from ivgr.data.encode import QueryEncoder
from ivgr.models.attention import set_attention
from ivgr.models.registry import find_family
from ivgr.tools.probes.annotated_response import AnnotatedResponse, read_response
from ivgr.tools.random_checkpoint import configure, draw_model
from ivgr.toy.tokenizer import CHAT_TEMPLATE, PIXELS, build_tokenizer
from ivgr.toy.world import World, draw_samples


def random_policy(name: str, seed: int = 0):
    """A model of the family with random weights, and its encoder."""
    family, tokenizer = find_family(name), build_tokenizer()
    model = draw_model(configure(family, "tiny", None, tokenizer), torch.float32, seed)
    set_attention(model)
    processor = family.build_processor(tokenizer, CHAT_TEMPLATE, PIXELS)
    return model.eval(), QueryEncoder(processor, name, Prompts())


def world_samples(count: int, **options):
    """The first `count` paired samples of a drawn world."""
    drawn = draw_samples(World("val", 2 * count + 2, **options))
    return [sample for sample in drawn if sample.kind == "paired"][:count]


def says(encoder: QueryEncoder, sample, text: str | None = None) -> AnnotatedResponse:
    """The reading of a policy that answered `text`, by default the gold reasoning and answer."""
    if text is None:
        text = f"<think>{sample.reasoning[TEXTUAL]}</think><answer>{sample.answer}</answer>"
    query = encoder(sample, (TEXTUAL,))
    rollout = Rollout(torch.zeros(0, dtype=torch.long), torch.empty(0), torch.empty(0), text, False)
    query = replace(query, groups=[replace(query.groups[0], rollouts=[rollout])])
    return read_response(query, encoder.processor.tokenizer)


class KnownTower(nn.Module):
    """A vision tower that passes on what stands in the first columns of pixel_values."""

    spatial_merge_size = 2

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.dtype = width, torch.float32

    def forward(self, pixel_values, grid_thw=None, **_):
        return BaseModelOutputWithPooling(pooler_output=pixel_values[::4, : self.width])


def with_tokens(reading: AnnotatedResponse, tokens: torch.Tensor) -> AnnotatedResponse:
    """The reading of a picture whose tokens (n, width) the KnownTower will give."""
    width = reading.query.pixel_values.shape[1]
    rows = torch.zeros(4 * len(tokens), width)
    rows[::4, : tokens.shape[1]] = tokens
    return replace(reading, query=replace(reading.query, pixel_values=rows))
