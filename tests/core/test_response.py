import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivgr.core.response import format_reward, read_answer, read_think

calm = settings(deadline=None)
N = 100_000
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
inner_texts = st.text().filter(lambda text: not any(tag in text for tag in TAGS))
blanks = st.text(" \t\r\n", max_size=4)
pieces = st.sampled_from([*TAGS, "a", " ", "\n", "<", "think>"])
shuffles = st.lists(pieces, max_size=3).flatmap(lambda extra: st.permutations([*TAGS, *extra]))
texts = st.text() | st.lists(pieces, max_size=12).map("".join)
HOSTILE = {
    "think opened": "<think>" * (N // 7),
    "think closed": "</think>" * (N // 8),
    "blanks": " " * N,
    "blanks before": " " * N + "x<think></think><answer></answer>",
    "blanks between": "<think></think>" + " " * N + "x<answer></answer>",
    "blanks after": "<think></think><answer></answer>" + " " * N + "x",
    "half tags": "<think" * (N // 6),
    "many blocks": "<think>a</think><answer>b</answer>" * (N // 34),
    "brackets": "<think>" + "<" * N + "</think><answer></answer>x",
}


def well_formed(text: str) -> bool:
    """Splits at the tags instead of matching one pattern."""
    parts = re.split("(</?think>|</?answer>)", text.strip())
    if len(parts) != 9 or tuple(parts[1::2]) != TAGS:
        return False
    before, _, between, _, after = parts[::2]
    return not (before or between.strip() or after)


@calm
@given(inner_texts, inner_texts, st.lists(blanks, min_size=3, max_size=3))
def test_one_think_then_one_answer_is_rewarded_and_read_back(think, answer, gaps):
    text = f"{gaps[0]}<think>{think}</think>{gaps[1]}<answer>{answer}</answer>{gaps[2]}"
    assert format_reward(text) == 1
    assert read_think(text) == think
    assert read_answer(text) == answer.strip()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<think>a</think>",
        "<answer>b</answer>",
        "<answer>b</answer><think>a</think>",
        "<think>a</think><think>a</think><answer>b</answer>",
        "<think>a</think><answer>b</answer><answer>b</answer>",
        "<think>a</think><answer>b</answer>" * 2,
        "<think>a<think>a</think></think><answer>b</answer>",
        "<think>a<answer>b</answer></think>",
        "<think>a<answer></think>b</answer>",
        "<think>a</think> so <answer>b</answer>",
        "Well, <think>a</think><answer>b</answer>",
        "<think>a</think><answer>b</answer>.",
        "<think>a</think><answer>b",
        "<think>a<answer>b</answer>",
        "<think>a</think><answer>b</answer></answer>",
        "<Think>a</Think><answer>b</answer>",
    ],
)
def test_any_other_form_gets_nothing(text):
    assert format_reward(text) == 0


@settings(deadline=None, max_examples=500)
@given(texts | shuffles.map("".join))
def test_format_agrees_with_splitting_at_the_tags(text):
    assert format_reward(text) == float(well_formed(text))


@calm
@given(texts)
def test_blocks_read_from_any_text_stood_between_their_tags(text):
    think, answer = read_think(text), read_answer(text)
    assert not think or f"<think>{think}</think>" in text
    assert not answer or re.search(rf"<answer>\s*{re.escape(answer)}\s*</answer>", text)
    assert "</think>" not in think and "</answer>" not in answer


@pytest.mark.parametrize("text", ["", "<think>a", "a</think>", "</think>a<think>", "<answer>a</answer>"])
def test_without_a_complete_think_block_its_text_is_empty(text):
    assert read_think(text) == ""


@pytest.mark.parametrize("text", ["", "<answer>a", "a</answer>", "</answer>a<answer>", "<think>a</think>"])
def test_without_a_complete_answer_block_its_text_is_empty(text):
    assert read_answer(text) == ""


def test_of_several_blocks_the_first_thought_and_the_first_answer_behind_all_thoughts_are_read():
    text = (
        "</think><think> a </think><answer> b </answer><think>c</think><answer>d</answer><answer>e</answer>"
    )
    assert (read_think(text), read_answer(text)) == (" a ", "d")


@pytest.mark.parametrize(
    ("think", "answer"),
    [
        ("The final letter goes in <answer> </answer> tags. The sign is red.", "A"),
        ("I should close with an <answer> block. The sign is red.", "A"),
        ("At first <answer>B</answer>, but no: it is red.", "A"),
        ("</answer><answer>", "A"),
    ],
)
def test_tags_quoted_in_the_reasoning_are_no_answer(think, answer):
    assert read_answer(f"<think>{think}</think><answer>{answer}</answer>") == answer
    assert read_answer(f"<think>{think}</think>") == ""


@pytest.mark.timeout(10)
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_judged_quickly(text):
    start = time.process_time()
    assert format_reward(text) == 0
    read_think(text), read_answer(text)
    assert time.process_time() - start < 1
