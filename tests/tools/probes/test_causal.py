"""Interventions where the truth is known: a policy whose answer hangs on the tokens inside the gold
boxes alone, one that hangs on none, and what the tower's tokens become in every family."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ivgr.models.registry import find_family
from ivgr.tools.probes.causal import probe_causal, tokens_replaced
from ivgr.tools.probes.token_grid import coverage, grid_shape
from support.families import FAMILIES
from support.probing import KnownTower, random_policy, says, with_tokens, world_samples

PULL = 0.5


class Reader(nn.Module):
    """A decoder layer that tells every token what stands at some columns of the row it is in: those
    whose first number is not 0 in any row."""

    def __init__(self, columns: list[int]) -> None:
        super().__init__()
        self.columns = columns

    def forward(self, hidden_states, **_):
        return hidden_states + hidden_states[:, self.columns].mean(1, keepdim=True)


def reading_policy(inside: bool):
    """A policy that answers by the tokens inside the box of its one question, or by none; and the
    reading of that question, answered "square"."""
    model, encoder = random_policy("qwen2_vl")
    width = model.config.text_config.hidden_size
    sample = next(s for s in world_samples(40) if s.answer == "square")
    reading = says(encoder, sample)
    touched = coverage(reading.query.boxes, reading.query.frame, grid_shape(model, reading.query)).ravel() > 0
    first = int((reading.query.prefix == model.config.image_token_id).nonzero()[0])
    kind = torch.from_numpy(1 - touched.astype(int))
    language = model.model.language_model
    language.embed_tokens = nn.Embedding(len(language.embed_tokens.weight), width)
    language.embed_tokens.weight.data.zero_()
    model.model.visual = KnownTower(width)
    columns = (first + touched.nonzero()[0]).tolist() if inside else [0]
    language.layers = nn.ModuleList([Reader(columns)])
    answer = encoder.processor.tokenizer("square", add_special_tokens=False)["input_ids"]
    model.lm_head = nn.Linear(width, len(language.embed_tokens.weight), bias=False)
    model.lm_head.weight.data.zero_()
    model.lm_head.weight.data[answer, 0] = PULL
    return model, encoder, with_tokens(reading, torch.eye(width)[kind]), answer


def test_an_answer_that_hangs_on_the_box_falls_by_what_it_must():
    model, encoder, reading, answer = reading_policy(inside=True)
    found = probe_causal(model, encoder.processor.tokenizer, [reading])
    width, words = model.config.text_config.hidden_size, len(model.lm_head.weight)
    assert len(answer) == 1
    # All of the state is the first unit vector, so its norm makes it sqrt(width) long.
    pull = PULL * width**0.5
    whole = pull - math.log(math.exp(pull) + words - 1)
    expected = whole + math.log(words)
    for drop in (found.reasoned, found.direct):
        assert drop.inside.mean == pytest.approx(expected, abs=1e-3)
        assert drop.outside.mean == pytest.approx(0, abs=1e-6)
        assert drop.difference.mean == pytest.approx(expected, abs=1e-3)
    assert found.left_out == 0 and found.reasoned.inside.count == 1


def test_an_answer_that_hangs_on_no_token_does_not_fall():
    model, encoder, reading, _ = reading_policy(inside=False)
    found = probe_causal(model, encoder.processor.tokenizer, [reading])
    for drop in (found.reasoned, found.direct, found.reasoning):
        assert (drop.inside.mean, drop.outside.mean) == pytest.approx((0, 0), abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_drops_are_what_separate_stock_passes_give(family):
    """Against the stock forward of each row alone, its tower's output edited by hand."""
    model, encoder = random_policy(family)
    readings = [says(encoder, sample) for sample in world_samples(3)]
    found = probe_causal(model, encoder.processor.tokenizer, readings, budget=1)
    drops = []
    for reading in readings:
        query, tokenizer = reading.query, encoder.processor.tokenizer
        touched = coverage(query.boxes, query.frame, grid_shape(model, query)).ravel() > 0
        lost = [np.zeros(0, int), touched.nonzero()[0]]
        answer = torch.tensor(tokenizer(query.sample.answer, add_special_tokens=False)["input_ids"])
        said = query.groups[0].rollouts[0].text.partition("<answer>")[0] + "<answer>"
        response = torch.tensor(tokenizer(said, add_special_tokens=False)["input_ids"])
        prompt = torch.cat([query.prefix, query.groups[0].instruction])
        ids = torch.cat([prompt, response, answer])[None]
        logps = [stock_logp(model, query, ids, len(answer), tokens) for tokens in lost]
        drops.append(logps[0] - logps[1])
    assert found.reasoned.inside.mean == pytest.approx(np.mean(drops), abs=1e-4)
    assert abs(found.reasoned.inside.mean) > 1e-4


@torch.no_grad()
def stock_logp(model, query, ids, count, lost):
    tower, forward = model.model.visual, model.model.visual.forward

    def edited(*args, **kwargs):
        output = forward(*args, **kwargs)
        levels = [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]
        for level in levels:
            kept = [n for n in range(len(level)) if n not in set(lost.tolist())]
            level[lost] = level[kept].mean(0)
        return output

    tower.forward = edited
    model.model.rope_deltas = None
    logits = model(
        input_ids=ids,
        pixel_values=query.pixel_values,
        image_grid_thw=query.image_grid_thw,
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
    ).logits[0]
    tower.forward = forward
    logp = logits.log_softmax(-1)[-count - 1 : -1]
    return float(logp.gather(1, ids[0, -count:, None]).sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_lost_tokens_change_and_the_hook_goes(family):
    model, encoder = random_policy(family)
    queries = [says(encoder, sample).query for sample in world_samples(2)]
    lost = [np.array([1, 3]), np.array([0])]
    tower = find_family(family).vision_tower(model)
    pixels, grid = (
        torch.cat([q.pixel_values for q in queries]),
        torch.cat([q.image_grid_thw for q in queries]),
    )
    with torch.no_grad():
        before = tower(pixels, grid_thw=grid)
        with tokens_replaced(model, queries, lost):
            after = tower(pixels, grid_thw=grid)
    first = int(queries[0].image_grid_thw.prod()) // 4
    assert not tower._forward_hooks
    levels = [(before.pooler_output, after.pooler_output)]
    levels += zip(*(getattr(o, "deepstack_features", None) or [] for o in (before, after)), strict=True)
    assert len(levels) == (3 if family == "qwen3_vl" else 1)
    for old, new in levels:
        changed = (old != new).any(1).nonzero()[:, 0].tolist()
        assert changed == [1, 3, first]
        kept = [n for n in range(first) if n not in (1, 3)]
        torch.testing.assert_close(new[1], old[kept].mean(0))
        torch.testing.assert_close(new[first], old[first + 1 :].mean(0))


def test_what_cannot_be_tried_is_counted():
    model, encoder = random_policy("qwen2_vl")
    samples = world_samples(3)
    whole = [says(encoder, samples[0]), says(encoder, samples[1], "no reasoning")]
    found = probe_causal(model, encoder.processor.tokenizer, whole)
    assert found.left_out == 1 and found.direct.inside.count == 1
    nothing = probe_causal(model, encoder.processor.tokenizer, whole[1:])
    assert nothing.left_out == 1 and nothing.direct.inside.count == 0
