"""Rewriting, keeping and balancing: against claims, hostile rewrites and counting."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivgr.core.errors import UserError
from ivgr.core.frame import Frame
from ivgr.tools.distill.balance import parse_ratio, plan_demonstrations
from ivgr.tools.distill.collect import Candidate
from ivgr.tools.distill.keep import judge_rewrites
from ivgr.tools.distill.rewrite import ChatRewriter, read_reply
from ivgr.toy import RuleJudge
from ivgr.toy.rule_rewriter import RuleRewriter
from ivgr.toy.statements import read_claims
from support.samples import RELATIVE, RecordingJudge, make_sample, response

CIRCLE = "The red circle is at <box>[0,0,200,200]</box>. The cross is at <box>[700,700,900,900]</box>."
WORDS = "The red circle is in the upper left. The cross is in the lower right."


def candidate(id="s0", think=CIRCLE, answer="red", frame=RELATIVE, **fields):
    return Candidate(make_sample(id, answer, **fields), think, answer, frame)


names = st.lists(st.sampled_from(("small", "large", "red", "circle", "object")), min_size=1, max_size=4)
corners = st.integers(0, 900)


@given(
    st.dictionaries(names.map(" ".join), st.tuples(corners, corners), min_size=1, max_size=5),
    st.lists(st.sampled_from(["The circle is red.", "The cross is a square.", "The red cross is large."])),
    st.integers(1, 6),
    st.integers(0, 2**40),
    st.sampled_from([RELATIVE, Frame(640.0, 1200.0)]),
)
def test_rewrites_make_the_same_claims_in_different_words(boxes, remarks, k, seed, frame):
    said = [f"The {name} is at <box>[{x},{y},{x + 60},{y + 40}]</box>." for name, (x, y) in boxes.items()]
    item = candidate(think=" ".join([*said, *remarks, "So it is."]), frame=frame)
    (responses,) = RuleRewriter().rewrite([item], k, seed)
    assert 1 <= len(responses) <= k and len(set(responses)) == len(responses)
    assert len(responses) >= min(k, 2)
    for text in responses:
        assert read_claims(text) == read_claims(item.think, frame.width, frame.height)
        assert judge_rewrites([(item, text)], RuleJudge(), 1.0) == ["kept"]
    assert RuleRewriter().rewrite([candidate("other"), item], k, seed)[1] == responses


def test_reasoning_without_statements_has_no_rewrite():
    assert RuleRewriter().rewrite([candidate(think="I cannot see it.")], 4, 0) == [[]]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (response(WORDS), "kept"),
        (response(WORDS, "The red."), "kept"),
        (response(CIRCLE), "box"),
        (response(WORDS + " It is at [0, 0, 200, 200]."), "box"),
        (response(WORDS + " It is at (0.5,0,200,200)."), "box"),
        (response(WORDS + " The chart says 1, 2, 3, 4."), "kept"),
        (WORDS, "format"),
        (response(" "), "format"),
        (response(f"<think>{WORDS}"), "format"),
        (response(WORDS, "blue"), "answer"),
        (response(WORDS, ""), "answer"),
        (response(WORDS.replace("upper", "lower")), "consistency"),
        (response("The picture is nice."), "consistency"),
        (response("The cross is in the lower right. The cross is red."), "consistency"),
        (response("The cross is in the lower right."), "kept"),
    ],
)
def test_a_rewrite_is_kept_only_if_nothing_speaks_against_it(text, verdict):
    assert judge_rewrites([(candidate(), text)], RuleJudge(), 0.7) == [verdict]


def test_the_judge_is_asked_about_the_grounded_reasoning_and_only_where_needed():
    judge = RecordingJudge(agrees=True, score=0.7)
    pairs = [(candidate(), response(CIRCLE)), (candidate(), response(WORDS, "scarlet"))]
    assert judge_rewrites(pairs, judge, 0.7) == ["box", "kept"]
    assert judge.answers == ["scarlet"] and judge.comparisons == [(CIRCLE, WORDS, RELATIVE)]
    assert judge_rewrites(pairs, judge, 0.71) == ["box", "consistency"]
    assert judge_rewrites(pairs, RecordingJudge(True, None), 0.0) == ["box", "consistency"]


@pytest.mark.parametrize("odd", [math.nan, math.inf, 2.0, "1"])
def test_a_rewrite_on_which_no_verdict_came_is_not_kept(odd):
    pairs = [(candidate(), response(WORDS, "scarlet")), (candidate(), response(WORDS))]
    assert judge_rewrites(pairs, RecordingJudge(odd, 1.0), 0.7) == ["answer", "kept"]
    assert judge_rewrites(pairs, RecordingJudge(True, odd), 0.7) == ["consistency"] * 2


class Client:
    def __init__(self, reply):
        self.reply, self.asked = reply, []

    def ask(self, conversations, parse):
        self.asked += conversations
        return [parse(self.reply(i, chat[-1]["content"])) for i, chat in enumerate(conversations)]


def test_the_chat_rewriter_asks_k_ways_for_every_item():
    client = Client(lambda i, _: response(f"words {i}") if i != 4 else "I would rather not.")
    items = [candidate("a"), candidate("b", think="Look: <box>[1,2,3,4]</box>", frame=Frame(320.0, 240.0))]
    rewrites = ChatRewriter(client).rewrite(items, 3, 0)
    assert rewrites == [
        [response(f"words {i}") for i in (0, 1, 2)],
        [response("words 3"), response("words 5")],
    ]
    requests = [chat[-1]["content"] for chat in client.asked]
    assert len(set(requests[:3])) == len(set(requests[3:])) == 3
    assert all(CIRCLE in request and "1000 wide and 1000 high" in request for request in requests[:3])
    assert all(
        "320 wide and 240 high" in request and "What color is it?" in request for request in requests[3:]
    )


def test_equal_rewrites_of_a_chat_model_count_once():
    assert ChatRewriter(Client(lambda *_: response(WORDS))).rewrite([candidate()], 4, 0) == [
        [response(WORDS)]
    ]


def test_a_server_that_never_answers_stops_the_work():
    with pytest.raises(UserError, match="not one of 3 requests"):
        ChatRewriter(Client(lambda *_: "")).rewrite([candidate()], 3, 0)
    assert ChatRewriter(Client(lambda *_: "")).rewrite([], 3, 0) == []


@pytest.mark.parametrize(
    ("reply", "read_as"),
    [
        (response(WORDS), response(WORDS)),
        (f"<think>How shall I put it?</think>\n{response(WORDS)}\n", response(WORDS)),
        (f"```\n{response(WORDS)}\n```", response(WORDS)),
        (WORDS, None),
        (f"<think>{WORDS}", None),
        ("", None),
    ],
)
def test_what_is_read_from_a_reply(reply, read_as):
    assert read_reply(reply) == read_as


@given(
    st.lists(st.integers(0, 30)), st.lists(st.integers(0, 30)), st.integers(1, 9), st.integers(1, 9),
    st.integers(0, 9),
)  # fmt: skip
def test_demonstrations_are_exactly_at_the_ratio_and_as_many_as_can_be(grounded, textual, g, t, seed):
    texts = [[(str(i), f"{i}-{n}") for n, i in enumerate(ids)] for ids in (grounded, textual)]
    ratio = parse_ratio(f"{g}:{t}")
    units = max(n for n in range(40) if n * ratio[0] <= len(grounded) and n * ratio[1] <= len(textual))
    if units == 0:
        with pytest.raises(UserError, match="--ratio"):
            plan_demonstrations(*texts, ratio, seed)
        return
    plan = plan_demonstrations(*texts, ratio, seed)
    for stream, given_texts, share in zip(("grounded", "textual"), texts, ratio, strict=True):
        chosen = [(i, r[stream]) for i, reasonings in plan.items() for r in reasonings if stream in r]
        assert len(chosen) == units * share and len(set(chosen)) == len(chosen)
        assert set(chosen) <= set(given_texts)
        turns = Counter(i for i, _ in chosen)
        had = Counter(i for i, _ in given_texts)
        assert max(turns.values()) == 1 or all(turns[i] >= min(had[i], max(turns.values()) - 1) for i in had)
