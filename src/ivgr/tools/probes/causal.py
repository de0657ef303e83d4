"""Does the answer depend on what is inside the gold boxes? Image tokens there lose what is their
own, and as many elsewhere; how much less likely does the gold answer become?

In: readings. Out: the drop of the gold answer's log-prob, after the policy's own reasoning and
without any, and that of the reasoning.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ivgr.core.query import Query
from ivgr.core.response import read_think
from ivgr.core.seeding import derive_seed
from ivgr.models.registry import find_family
from ivgr.packing.prefix_tree import Pack, pack_queries
from ivgr.tools.probes.annotated_response import AnnotatedResponse, spell, tokens_within, with_responses
from ivgr.tools.probes.probe_interval import Interval, mean_interval
from ivgr.tools.probes.token_grid import coverage, grid_shape
from ivgr.tools.probes.trace import BUDGET

CONDITIONS = ("whole", "inside", "outside")


@dataclass(frozen=True)
class Drop:
    """Fall of a text's log-prob, in nats, when image tokens inside the gold boxes lose what is their
    own, and when as many outside do; difference is inside less outside."""

    inside: Interval
    outside: Interval
    difference: Interval


@dataclass(frozen=True)
class Causal:
    """Of three texts. reasoned: the gold answer after the policy's own reasoning, which may have said
    it already; direct: the gold answer after an empty think block; reasoning: the policy's own.
    left_out counts readings without an image, a gold box or any reasoning, or with fewer tokens
    outside the boxes than inside."""

    reasoned: Drop
    direct: Drop
    reasoning: Drop
    left_out: int


@dataclass(frozen=True)
class Trial:
    """One question in three conditions: query answers it twice, with the reasoning and directly; lost:
    tokens of the first image that lose what is their own, in each condition; scored: response and
    tokens of each text."""

    query: Query
    lost: tuple[np.ndarray, ...]
    scored: tuple[tuple[int, tuple[int, ...]], ...]


@torch.no_grad()
def probe_causal(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    readings: list[AnnotatedResponse],
    budget: int = BUDGET,
) -> Causal:
    """Every reading is one image; the tokens outside are drawn by the sample's id."""
    trials = [(n, trial) for n, r in enumerate(readings) if (trial := _set_up(model, tokenizer, r))]
    queries = [trial.query for _, trial in trials for _ in CONDITIONS]
    lost = [tokens for _, trial in trials for tokens in trial.lost]
    scored = [trial.scored for _, trial in trials for _ in CONDITIONS]
    logps: list[list[float]] = []
    for pack in pack_queries(model, queries, budget, join=False):
        part = slice(len(logps), len(logps) + len(pack.queries))
        logps += _score(model, pack, lost[part], scored[part])
    table = np.array(logps).reshape(len(trials), len(CONDITIONS), 3)
    images = np.array([n for n, _ in trials], int)
    drops = [_drop(table[:, :, text], images) for text in range(3)]
    return Causal(*drops, len(readings) - len(trials))  # pyright: ignore[reportCallIssue]


def _set_up(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, reading: AnnotatedResponse
) -> Trial | None:
    query = reading.query
    shape, text = grid_shape(model, query), query.groups[0].rollouts[0].text
    if not shape[0] or not query.boxes or not reading.think:
        return None
    touched = coverage(query.boxes, query.frame, shape).ravel() > 0
    inside, outside = touched.nonzero()[0], (~touched).nonzero()[0]
    if len(outside) < len(inside):
        return None
    rng = np.random.default_rng(derive_seed("causal", query.sample.id))
    elsewhere = np.sort(rng.permutation(outside)[: len(inside)])
    asked, scored = _write_out(query, read_think(text), tokenizer)
    return Trial(asked, (inside[:0], inside, elsewhere), scored)


def _write_out(
    query: Query, think: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[Query, tuple[tuple[int, tuple[int, ...]], ...]]:
    """`query` with both responses, and where in them the three texts stand."""
    given = query.groups[0].opened
    answer, opened, responses, places = query.sample.answer, given or "<think>", [], []
    for said in (think, ""):
        before = f"{opened}{said}</think><answer>"
        ids, spans = spell(f"{before}{answer}</answer>", tokenizer, len(given))
        places.append((len(responses), tokens_within(spans, len(before), len(before) + len(answer))))
        responses.append((before, ids))
        if said:
            reasoning = tokens_within(spans, len(opened), len(opened) + len(said))
    return with_responses(query, responses), (*places, (0, reasoning))


def _score(
    model: PreTrainedModel,
    pack: Pack,
    lost: list[np.ndarray],
    scored: list[tuple[tuple[int, tuple[int, ...]], ...]],
) -> list[list[float]]:
    """The summed log-prob of the three texts of each query."""
    with tokens_replaced(model, pack.queries, lost):
        hidden = pack.hidden(model)
    starts = np.cumsum([0, *(len(rollout.tokens) for rollout in pack.rollouts)])
    texts = [
        starts[2 * row + response] + np.array(tokens)
        for row, three in enumerate(scored)
        for response, tokens in three
    ]
    chosen = torch.from_numpy(np.concatenate(texts)).to(hidden.device)
    logits = model.lm_head(hidden[pack.row[chosen], pack.column[chosen]]).float()
    logp = logits.log_softmax(-1).gather(1, pack.targets[chosen][:, None])[:, 0].double().cpu()
    sums = torch.stack([part.sum() for part in logp.split([len(text) for text in texts])])
    return sums.view(len(scored), -1).tolist()


@contextmanager
def tokens_replaced(model: PreTrainedModel, queries: list[Query], lost: list[np.ndarray]) -> Iterator[None]:
    """In the body, the `lost` tokens of each query's first image are replaced by the mean of that image's
    other tokens, as the vision tower outputs them, on all paths into the language model."""
    family = find_family(model.config.model_type)
    edits, start = [], 0
    for query, tokens in zip(queries, lost, strict=True):
        assert query.image_grid_thw is not None, "its image's tokens are replaced"
        sizes = (query.image_grid_thw.prod(1) // family.merge**2).tolist()
        kept = np.setdiff1d(np.arange(sizes[0]), tokens)
        edits.append((start + torch.from_numpy(tokens).long(), start + torch.from_numpy(kept).long()))
        start += sum(sizes)

    def edit(features: torch.Tensor) -> torch.Tensor:
        features = features.clone()
        for tokens, kept in edits:
            features[tokens.to(features.device)] = features[kept.to(features.device)].mean(0)
        return features

    def replace_tokens(_module: Any, _inputs: Any, output: Any) -> Any:
        changed: dict[str, Any] = {"pooler_output": edit(output.pooler_output)}
        if getattr(output, "deepstack_features", None) is not None:
            changed["deepstack_features"] = [edit(level) for level in output.deepstack_features]
        return replace(output, **changed)

    hook = family.vision_tower(model).register_forward_hook(replace_tokens)
    try:
        yield
    finally:
        hook.remove()


def _drop(logps: np.ndarray, images: np.ndarray) -> Drop:
    """logps (n, conditions)."""
    whole, inside, outside = logps.T
    return Drop(
        mean_interval(whole - inside, images),
        mean_interval(whole - outside, images),
        mean_interval(outside - inside, images),
    )
