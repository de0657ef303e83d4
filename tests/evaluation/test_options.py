"""`match_option` beside answers written by hand and a second, clumsier statement of its rule."""

import itertools
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivgr.evaluation import match_option

CAR = {"A": "red", "B": "dark blue", "C": "green", "D": "yellow"}
BY_HAND = [
    ("A", "A"), ("B.", "B"), ("(C)", "C"), ("**D**", "D"), ("[B]", "B"), ("{A}", "A"), ("#C", "C"),
    ("b", None), ("E", None), ("", None), ("AB", None), ("A B", None), ("A, B", None), ("A A", "A"),
    ("The option is C", "C"), ("C is my choice", "C"), ("C is what I see", None),
    ("B: dark blue", "B"), ("I choose D, yellow!", "D"), ("A car that is red", "A"),
    ("A car that is grey", None),
    ("A car, red", "A"), ("The answer is B because the car stands in deep shade", "B"),
    ("The Answer  is **D**, as the sign beside it shows", "D"), ("answer is c since the roof shows it", "C"),
    ("Either A or B. I think the answer is B since it is dark there", "B"),
    ("The answer is E since nothing fits here at all", None), ("red", "A"), ("It is RED.", "A"),
    ("dark blue", "B"), ("blue", None), ("red or green", None), ("It is a greenish one", "C"),
    ("I see a yellow car by the house next to the red one", None),
    ("the car that stands in front of the house there is yellow", None), ("B/C", None), ("A or C", None),
    ("C;", "C"), ("option 'C'", None), ("Answer:A", "A"), ("Answer: A and nothing else can be", None),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "letter"), BY_HAND)
def test_answers_read_by_hand(answer, letter):
    assert match_option(answer, CAR) == letter


def restate(answer, choices):
    """The documented rule, character by character."""
    text = "".join(" " if c in ".()[],:;!*#{}" else c for c in answer)
    places = {}
    for place, word in enumerate(text.split()):
        for letter in choices:
            if word == letter:
                places.setdefault(letter, place)
    if len(places) == 1:
        ((letter, place),) = places.items()
        if len(text.split()) - place <= 4:
            return letter
    lower = answer.casefold() if answer.isascii() else answer.lower()
    for start in range(len(lower)):
        rest = lower[start:]
        if not rest.startswith("answer"):
            continue
        gap = rest[6:]
        after = gap.lstrip()
        if gap == after or not after.startswith("is"):
            continue
        gap, after = after[2:], after[2:].lstrip()
        if gap == after:
            continue
        after = after.lstrip("*")
        if after and after[0] in "abcd":
            if after[0].upper() in choices:
                return after[0].upper()
            break
    total = 0
    for text in choices.values():
        total += 2 * len(text)
    if len(answer) > total:
        return None
    inside = [letter for letter in choices if choices[letter] and lower.find(choices[letter].lower()) >= 0]
    return inside[0] if len(inside) == 1 else None


FRAMES = [
    "{}", "({})", "{}.", "**{}**", "The answer is {}", 
    "the correct answer is {} because it stands there alone",
    "I would say {}", "{}, since that is what the picture shows", "answer is **{}** and not the other one",
    "Option {}: {}", "{} or {}", "Not {}. The answer is {} for all I can see in it", "{} {} {}", "<{}>",
    "It is the {} one", "ANSWER IS {}",
]  # fmt: skip
WORDS = ["A", "B", "C", "D", "E", "a", "d", "red", "Red", "dark blue", "greenish", "cat", "", "A dog"]
OPTIONS = [
    CAR,
    {"A": "Yes", "B": "No"},
    {"A": "cat", "B": "dog", "C": "", "E": "a red cat that sleeps on the sofa"},
    {"C": "1", "D": "10"},
]
MADE = [frame.format(*[word] * 3) for frame, word in itertools.product(FRAMES, WORDS)]


@pytest.mark.parametrize("choices", OPTIONS, ids=range(len(OPTIONS)))
def test_made_up_answers(choices):
    assert len(set(MADE)) >= 150
    found = [match_option(answer, choices) for answer in MADE]
    assert found == [restate(answer, choices) for answer in MADE]
    assert len(set(found)) > 2


pieces = st.sampled_from(
    [*"ABCDE", "answer", "is", "red", "dark", "blue", "the", "*", ".", "(", ")", "\n", "no"]
)


@given(st.lists(pieces, max_size=9), st.sampled_from([" ", "", "  "]), st.sampled_from(OPTIONS))
def test_any_answer(parts, joint, choices):
    answer = joint.join(parts)
    assert match_option(answer, choices) == restate(answer, choices)


@given(st.text(max_size=40))
def test_any_text_names_an_option_or_none(text):
    assert match_option(text, CAR) in (*CAR, "Z", None)


def test_options_are_not_changed_and_need_not_end_at_d():
    texts = ["One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight"]
    choices = dict(zip(string.ascii_uppercase, texts, strict=False))
    before = dict(choices)
    assert match_option("G", choices) == "G" and match_option("It says seven", choices) == "G"
    assert choices == before
