"""Each scoring rule beside a second statement of it and answers written by hand."""

import itertools
import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivgr.evaluation import match_option
from ivgr.tools.benchmarks.scoring import (
    mean_best_iou,
    score_box,
    score_first_letter,
    score_math,
    score_open,
    score_option,
    score_relaxed,
    score_yes_no,
)

NONE = {}


@pytest.mark.parametrize("letter", "ABCDE")
@pytest.mark.parametrize("form", [
    "{}", "({})", "**{}**", "{}.", "{}. a thing", "Answer: {}", "answer: ({})", "The answer is {}",
    "Option {}", "The best answer is {}", "The correct answer is: {}", "Best option: **{}**",
    "Correct answer: {}", "The answer is {}, as the sign above shows", "My choice is {} because it is there",
])  # fmt: skip
def test_a_letter_that_is_stated_is_read(letter, form):
    for said in (letter, letter.lower()) if form[0] in "({*A" and form[-1] in "})*." else (letter,):
        verdict = score_first_letter(form.format(said), "B", NONE)
        assert (verdict.predicted, verdict.right) == (letter, letter == "B"), form.format(said)


@pytest.mark.parametrize(("answer", "letter"), [
    ("", ""), ("  ", ""), ("()", ""), ("(", ""), ("12", ""), ("b. the blue van", "B"), ("the blue van", "E"),
    ("B, not A", "B"), ("(B) the blue van, since A is too small", "B"), ("no idea", "D"), ("not in it", ""),
    ("Answer: D", "D"), ("Correct answer: A", "A"), ("answer is a car", "A"), ("The answer", "E"),
    ("cat", "C"),
])  # fmt: skip
def test_first_letter_by_hand(answer, letter):
    """The first of A-E of the answer in capitals, be it one of a word, as VLMEvalKit reads a block."""
    assert score_first_letter(answer, "B", NONE).predicted == letter


COLORED = {"A": "blue", "B": "green", "C": "black", "D": "a cat"}


@pytest.mark.parametrize(("answer", "letter"), [
    ("The answer is blue.", "A"), ("The answer is black.", "C"), ("The answer is a cat", "D"),
    ("The answer is B", "B"), ("The answer is **C** since the black one is a cat", "C"),
    ("the answer is d", "D"), ("The answer is b since nothing else is left there", "B"),
    ("The answer is brown", ""), ("Cannot determine the answer", "Z"), ("Z", "Z"), ("It is green", "B"),
])  # fmt: skip
def test_a_word_is_no_letter_of_an_option(answer, letter):
    verdict = score_option(answer, "C", COLORED)
    assert verdict.predicted == letter and verdict.right is ((letter == "C") if letter else None)


ANSWERS = [f.format(x, y) for f, x, y in itertools.product(
    ["{}", "{}, {}", "{}.", "{}! {}", "The answer is {}.", "'{}'", "**{}**", "{}/{}", "{}-{} 1,000",
     '"{}"', "({} {})"],
    ["yes", "no", "Yes", "NO", "nothing", "yesterday", "not", "well", "yes no"],
    ["there is", "no", "Yes"],
)]  # fmt: skip


def says(text):
    """VQA's punctuation rule, mark by mark."""
    lower = text.lower()
    pairs = zip(lower, lower[1:], lower[2:], strict=False)
    numbers = any(a.isdecimal() and b == "," and c.isdecimal() for a, b, c in pairs)
    out = []
    for place, c in enumerate(lower):
        if c in ';/[]"{}()=+\\_-><@`,?!':
            beside = any(
                c + " " == lower[i : i + 2] or " " + c == lower[i : i + 2] for i in range(len(lower))
            )
            out.append("" if beside or numbers else " ")
        elif c == "." and not any(
            a.isdecimal() for a in lower[place - 1 : place] + lower[place + 1 : place + 2]
        ):
            # What stands beside is judged after the marks are gone; none of these texts differ in it.
            out.append("")
        else:
            out.append(c)
    words = "".join(out).split()
    return {(True, False): "Yes", (False, True): "No"}.get(("yes" in words, "no" in words), "")


def test_yes_or_no():
    assert len(set(ANSWERS)) >= 150
    for gold in ("Yes", "no"):
        found = [score_yes_no(text, gold, NONE) for text in ANSWERS]
        assert [verdict.predicted for verdict in found] == [says(text) for text in ANSWERS]
        assert [v.right for v in found] == [
            v.predicted.lower() == gold.lower() if v.predicted else None for v in found
        ]
    assert {says(text) for text in ANSWERS} == {"Yes", "No", ""}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes, there is.", "Yes"),
        ("No", "No"),
        ("yes and no", ""),
        ("(no)", "No"),
        ("Nope", ""),
        ("**Yes**", ""),
        ("." * 32 + " yes.", ""),
        ("." * 31 + " yes.", "Yes"),
    ],
)
def test_yes_or_no_by_hand(answer, said):
    assert score_yes_no(answer, "yes", NONE).predicted == said


def test_relaxed_numbers_around_the_border():
    count = 0
    for gold in ("100", "-40", "0.5", "12%", "2e3"):
        scale = 0.01 if gold.endswith("%") else 1.0
        value = float(gold.strip("%"))
        for per_mille in range(-60, 61, 3):
            if abs(abs(per_mille) - 50) < 0.5:
                continue
            said = value * (1000 + per_mille) / 1000
            for text in (f"{said!r}%" if scale == 0.01 else repr(said), f" {said * scale!r} "):
                assert score_relaxed(text, gold, NONE).right is (abs(per_mille) < 50), (text, gold)
                count += 1
    assert count >= 150


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("Blue", "blue", True), ("blue ", "Blue", True), ("the blue", "blue", False), ("0", "0", True),
        ("0.0", "0", False), ("1", "0", False), ("105", "100", True), ("105.1", "100", False), 
        ("5%", "0.05", True),
        ("five", "5", False), ("2014", "2015", True),
        ("14", "['14']", True), ("b", "['a', 'B']", True), ("[1, 2]", "[1, 2]", False), ("2", "[1, 2]", True),
        ("", "3", False),
        ("%", "3", False),
    ],
)  # fmt: skip
def test_relaxed_by_hand(answer, gold, right):
    assert score_relaxed(answer, gold, NONE).right is right


COLORS = {"A": "red", "B": "blue"}


def test_open_questions_are_compared_as_text_and_others_by_letter():
    made = [a + w + z for a, w, z in itertools.product(
        ["", "a ", "The ", " "], ["dog", "Dog", "DOG", "cat", "dogs", "hot  dog"],
        ["", ".", "!", " .", "?!", "'", " x"],
    )]  # fmt: skip
    assert len(set(made)) >= 150
    for text in made:
        words = text.lower().replace("a dog", "dog").split()
        words = [w for w in words if w not in ("a", "the")]
        same = " ".join(words).strip(string.punctuation + " ") == "dog"
        assert score_open(text, "dog", NONE).right is (True if same else None), text
        assert score_open(text, "A", COLORS) == score_option(text, "A", COLORS)
    assert score_open("blue", "B", COLORS).right is True and score_open("A", "B", COLORS).right is False


def test_mathematics_by_value():
    numbers = [(n, d) for n in range(-6, 7) for d in range(1, 7)]
    checked = 0
    for n, d in numbers:
        for text in (f"\\frac{{{n}}}{{{d}}}", f"{n}/{d}", f"{2 * n}/{2 * d}"):
            right = score_math(text, "\\frac{3}{2}", NONE).right
            assert right is (True if n * 2 == 3 * d else None), text
            checked += 1
    assert checked >= 150
    assert score_math("3.0", "3", NONE).right is True and score_math("Three", "three", NONE).right is True
    assert score_math("B", "B", COLORS).right is True


@given(st.text(alphabet=string.printable, max_size=30))
def test_no_answer_breaks_a_rule(text):
    for rule in (score_option, score_first_letter, score_yes_no, score_relaxed, score_open):
        assert rule(text, "A", COLORS).right in (True, False, None)


def test_mean_best_iou_against_pixels():
    gold, written = [(0, 0, 10, 10), (20, 0, 30, 10)], [(0, 0, 10, 5), (5, 5, 25, 10), (0, 0, 1, 1)]

    def pixels(box):
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    best = [max(len(pixels(g) & pixels(w)) / len(pixels(g) | pixels(w)) for w in written) for g in gold]
    assert mean_best_iou(written, gold) == pytest.approx(sum(best) / 2)
    assert mean_best_iou([], gold) == mean_best_iou(written, []) == 0


LONG = 200_000


@pytest.mark.parametrize("text", [
    "answer" + " " * LONG, "answer is " * (LONG // 10), "answer: " + "*" * LONG, "['" + "\\'" * (LONG // 2),
    "[" * LONG, "[1" + " " * LONG,
    "[1," * (LONG // 3), '["' + '\\"' * (LONG // 2), "9" * LONG, "." * LONG + "yes",
    "1e" * (LONG // 2), "- " * (LONG // 2),
], ids=range(12))  # fmt: skip
def test_no_text_takes_long(text):
    """Neither as an answer nor as a gold one: each is looked through once."""
    start = time.process_time()
    for rule in (score_option, score_first_letter, score_yes_no, score_relaxed, score_box):
        rule(text, "[1.0, 2.0, 3.0, 4.0] of 9.0 x 9.0", COLORS)
    score_relaxed("14", text, NONE)
    match_option(text, COLORS)
    assert time.process_time() - start < 2
