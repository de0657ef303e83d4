"""What of a response is its reasoning and what its answer, for a model of any manners."""

import itertools
import re

import pytest

from ivgr.tools.inference.parse_reply import NOTES, read_parts


@pytest.mark.parametrize(
    ("text", "think", "answer", "source"),
    [
        ("<think>a</think> <answer> b </answer>", "a", "b", "answer block"),
        ("a</think><answer>b</answer>", "a", "b", "answer block"),
        ("<answer>b</answer><answer>c</answer>", "", "b", "answer block"),
        (
            "<think>the <answer>c</answer> tags</think><answer>b</answer>",
            "the <answer>c</answer> tags",
            "b",
            "answer block",
        ),
        ("<think>first <answer>c</answer></think> b", "first <answer>c</answer>", "b", "after think"),
        ("<answer>c</answer><think>a</think>", "a", "", "after think"),
        ("<think>a</think><answer></answer>", "a", "", "answer block"),
        ("<answer>\nb\n</answer> and more", "", "b", "answer block"),
        ("<think>a</think> so b.", "a", "so b.", "after think"),
        ("<think>a</think><answer>b", "a", "b", "after think"),
        ("<think>a</think>b</answer>", "a", "b", "after think"),
        ("a</think>b</think> c", "a", "c", "after think"),
        (" just b ", "", "just b", "whole reply"),
        ("<answer>b", "", "b", "whole reply"),
        ("<think>b", "", "<think>b", "whole reply"),
        ("", "", "", "whole reply"),
    ],
)
def test_a_response_of_any_model_is_read(text, think, answer, source):
    found = read_parts(text)
    assert (found.think, found.answer, found.source) == (think, answer, source)
    assert bool(NOTES[source]) == (source != "answer block")


PIECES = ["<think>", "</think>", "<answer>", "</answer>", "B", " so A "]
MADE = ["".join(parts) for length in range(5) for parts in itertools.product(PIECES, repeat=length)]


def restate(text):
    """By regular expressions: the answer and where it is from."""
    rest = re.sub(r"^.*</think>", "", text)
    found = re.search(r"<answer>(.*?)</answer>", rest)
    if found:
        return found.group(1).strip(), "answer block"
    return re.sub("</?answer>", "", rest).strip(), "after think" if "</think>" in text else "whole reply"


def test_every_order_of_tags_and_words():
    assert len(set(MADE)) > 1500
    for text in MADE:
        found = read_parts(text)
        assert (found.answer, found.source) == restate(text), text
        assert "</think>" not in found.think
