"""Held-out figures on responses whose truth is known."""

import pytest
import torch

from ivgr.core.prompts import GROUNDED, TEXTUAL, Prompts
from ivgr.core.query import Rollout
from ivgr.data.encode import QueryEncoder
from ivgr.evaluation.held_out import HeldOutFigures
from ivgr.judge import RulesAlone
from ivgr.toy import PlaceAccuracy, RuleJudge
from ivgr.toy.place_accuracy import names_places
from ivgr.toy.tokenizer import build_processor
from ivgr.toy.world import World, draw_samples
from support.samples import RecordingJudge

PLACES = (PlaceAccuracy(),)


@pytest.fixture(scope="module")
def queries():
    encoder = QueryEncoder(build_processor(), "qwen2_vl", Prompts())
    samples = [sample for sample in draw_samples(World("val", 20, seed=2)) if sample.kind == "paired"]
    return [encoder(sample) for sample in samples]


def answer(queries, respond, judge=None, metrics=PLACES):
    for query in queries:
        for group in query.groups:
            text = respond(query.sample, group.stream)
            group.rollouts = [Rollout(torch.zeros(7), torch.zeros(7), torch.zeros(7), text, False)]
    figures = HeldOutFigures(judge or RuleJudge(), metrics)
    figures.update(queries)
    return figures.compute()


def gold(sample, stream):
    return f"<think>{sample.reasoning[stream]}</think><answer>{sample.answer}</answer>"


def test_gold_responses_are_perfect(queries):
    figures = answer(queries, gold)
    assert figures[GROUNDED] == {"accuracy": 1, "format": 1, "iou": pytest.approx(1), "length": 7}
    assert figures[TEXTUAL] == {"accuracy": 1, "format": 1, "place_accuracy": 1, "length": 7}


def test_a_broken_format_is_wrong_whatever_it_says(queries):
    figures = answer(queries, lambda sample, stream: gold(sample, stream) + " so there")
    assert figures[TEXTUAL]["accuracy"] == figures[GROUNDED]["accuracy"] == 0


def test_silence_about_places_is_wrong(queries):
    figures = answer(queries, lambda sample, stream: f"<think></think><answer>{sample.answer}</answer>")
    assert figures[TEXTUAL] == {"accuracy": 1, "format": 1, "place_accuracy": 0, "length": 7}


def test_every_object_must_have_its_own_place_and_no_other(queries):
    query = next(query for query in queries if len(query.sample.labels) == 2)
    first, second = query.sample.reasoning[TEXTUAL].split(". ")
    assert names_places(query, f"{first}. {second}")
    assert names_places(query, f"{second} {first}.")
    assert not names_places(query, f"{first}.")
    lie = first.rsplit(" in the ", 1)[0] + " in the upper left."
    other = first.rsplit(" in the ", 1)[0] + " in the lower right."
    assert not names_places(query, f"{lie} {other} {second}")


def test_an_answer_without_a_verdict_is_left_out_and_said_to_be(queries):
    def respond(sample, stream):
        return gold(sample, stream).replace(
            "</answer>", " so to say</answer>" if stream == TEXTUAL else "</answer>"
        )

    half = iter([True, None] * len(queries))
    judge = RecordingJudge()
    judge.agree = lambda questions: [next(half) for _ in questions]
    figures = answer(queries, respond, judge)
    assert "unjudged" not in figures[GROUNDED] and figures[GROUNDED]["accuracy"] == 1
    assert figures[TEXTUAL]["place_accuracy"] == 1
    assert figures[TEXTUAL]["accuracy"] == 1 and 0 < figures[TEXTUAL]["unjudged"] < 1


@pytest.mark.parametrize("judge", [RecordingJudge(), RulesAlone()])
def test_places_are_a_figure_only_where_it_is_asked_for(queries, judge):
    figures = answer(queries, gold, judge, metrics=())
    assert figures[TEXTUAL] == {"accuracy": 1, "format": 1, "length": 7}
    assert figures[GROUNDED] == {"accuracy": 1, "format": 1, "iou": pytest.approx(1), "length": 7}


def test_without_a_judge_what_no_rule_matches_is_wrong(queries):
    figures = answer(
        queries, lambda *_: "<think>Hm.</think><answer>so to say</answer>", RulesAlone(), metrics=()
    )
    assert figures[TEXTUAL] == {"accuracy": 0, "format": 1, "length": 7}


def test_a_verdict_that_is_none_is_left_out_like_one_that_never_came(queries):
    judge = RecordingJudge(agrees=float("nan"))
    figures = answer(queries, lambda *_: "<think>Hm.</think><answer>so to say</answer>", judge)
    assert figures[TEXTUAL]["unjudged"] == 1
