"""A forward pass that is looked into: rows of attention, hidden states.

In: `AnnotatedResponse`s. Out: for chosen layers, where chosen response tokens look in the image, and what
they hold. No attention matrix of N x N is made (the mask off a GPU is one), and nothing but what was
asked for is kept.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ivgr.core.errors import UserError
from ivgr.models.registry import find_family
from ivgr.models.tree_attention import attend_mask
from ivgr.packing.prefix_tree import pack_queries
from ivgr.tools.probes.annotated_response import AnnotatedResponse, Point
from ivgr.tools.probes.token_grid import image_columns

BUDGET = 8192  # padded tokens a pass
ROWS = 64  # tokens whose attention is computed at a time


def choose_layers(model: PreTrainedModel, layers: Sequence[int] | None) -> tuple[int, ...]:
    """All decoder layers, or `layers`, of which negative ones count from the end; UserError for one
    that is not there."""
    count = len(find_family(model.config.model_type).decoder_layers(model))
    wrong = [layer for layer in layers or () if not -count <= layer < count]
    if wrong:
        raise UserError(f"probe: there is no layer {wrong[0]}; the model has {count}, counted from 0")
    return tuple(range(count)) if layers is None else tuple(sorted({layer % count for layer in layers}))


@dataclass
class Traced:
    """What was seen of one reading, at its points: all nouns, then all places.

    states (points, layers, H) fp32, the hidden states behind the layers; looks (points, layers,
    heads, image tokens) fp32, their attention to each token of the first image; think (layers,
    heads, image tokens), that of the reasoning's tokens, averaged, NaN if there are none. The latter two are
    empty where attention was not looked at.
    """

    reading: AnnotatedResponse
    states: torch.Tensor
    looks: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    think: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def at(self, point: Point, values: torch.Tensor) -> torch.Tensor:
        """Returns those of `values` (points, …) that belong to `point`."""
        nouns = len(self.reading.points("noun"))
        return values[:nouns] if point == "noun" else values[nouns:]


@torch.no_grad()
def trace_readings(
    model: PreTrainedModel,
    readings: list[AnnotatedResponse],
    layers: Sequence[int] | None = None,
    attention: bool = True,
    budget: int = BUDGET,
) -> Iterator[Traced]:
    """Reads each response once more, in packs of at most `budget` padded tokens, and yields what was
    seen, in order; `attention` says whether to look at it too."""
    layers = choose_layers(model, layers)
    left = iter(readings)
    for pack in pack_queries(model, [reading.query for reading in readings], budget, join=False):
        rows = [next(left) for _ in pack.queries]
        eye = AttentionRecorder(model, rows, pack.reach, layers)
        with _behind_layers(model, layers, rows) as states:
            pack.hidden(model, **{"tree_cache": eye} if attention else {})
        for row, reading in enumerate(rows):
            seen = (torch.stack(eye.looks[row], 1), torch.stack(eye.think[row])) if attention else ()
            yield Traced(reading, torch.stack(states[row], 1), *seen)


class AttentionRecorder:
    """In the place of a rollout's cache (`ivgr.models.tree_attention.LayerCache`) it sees every layer's
    queries and keys, rotary positions included, in all families alike.

    looks[row] gets a tensor (points, heads, image tokens) and think[row] one (heads, image tokens)
    for each of `layers`, as they are passed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        readings: list[AnnotatedResponse],
        reach: torch.Tensor,
        layers: tuple[int, ...],
    ) -> None:
        self.reach = reach
        self.layers = layers
        self.images = [image_columns(model, reading.query).to(reach.device) for reading in readings]
        self.points = [_points_of(reading) for reading in readings]
        self.thoughts = [[reading.start + token for token in reading.think] for reading in readings]
        self.looks: list[list[torch.Tensor]] = [[] for _ in readings]
        self.think: list[list[torch.Tensor]] = [[] for _ in readings]

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: Any,
        scaling: float,
    ) -> torch.Tensor:
        if module.layer_idx in self.layers:
            for row in range(len(self.images)):
                self._look(row, query[row], key[row], scaling)
        return attend_mask(module, query, key, value, mask, scaling=scaling)

    def _look(self, row: int, query: torch.Tensor, key: torch.Tensor, scaling: float) -> None:
        """Returns the attention of one row: query (heads, L, D), key (KV heads, L, D)."""
        empty = query.new_zeros(0, len(query), len(self.images[row]), dtype=torch.float32)
        points = [self._weights(row, part, query, key, scaling) for part in _chunks(self.points[row])]
        self.looks[row].append(torch.cat([empty, *points]).cpu())
        thoughts = [self._weights(row, part, query, key, scaling) for part in _chunks(self.thoughts[row])]
        total = torch.stack([empty.sum(0), *(part.sum(0) for part in thoughts)]).sum(0)
        self.think[row].append((total / (len(self.thoughts[row]) or torch.nan)).cpu())

    def _weights(
        self, row: int, tokens: list[int], query: torch.Tensor, key: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Attention (tokens, heads, image tokens) of some tokens to the image."""
        place = torch.tensor(tokens, device=key.device)
        column = torch.arange(key.shape[1], device=key.device)
        grouped = query[:, place].reshape(len(key), -1, query.shape[2])
        scores = (grouped @ key.transpose(1, 2)).float().view(len(query), len(place), -1) * scaling
        seen = (place[:, None] >= column) & (place[:, None] < self.reach[row])
        weights = scores.masked_fill_(~seen, -torch.inf).softmax(-1)
        return weights[:, :, self.images[row]].transpose(0, 1)


def _points_of(reading: AnnotatedResponse) -> list[int]:
    """The tokens that are looked into, counted within prompt and response."""
    return [reading.start + token for _, token in reading.points("noun") + reading.points("place")]


def _chunks(tokens: list[int]) -> list[list[int]]:
    return [tokens[start : start + ROWS] for start in range(0, len(tokens), ROWS)]


@contextmanager
def _behind_layers(
    model: PreTrainedModel, layers: tuple[int, ...], readings: list[AnnotatedResponse]
) -> Iterator[list[list[torch.Tensor]]]:
    """In the body, collects the hidden states (points, H) of each row after every one of `layers`."""
    points = [_points_of(reading) for reading in readings]
    states: list[list[torch.Tensor]] = [[] for _ in readings]

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        for row, columns in enumerate(points):
            states[row].append(hidden[row, columns].float().cpu())

    modules = find_family(model.config.model_type).decoder_layers(model)
    hooks = [modules[layer].register_forward_hook(keep) for layer in layers]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()
