from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivgr.judge import Agreement
from ivgr.rewards.accuracy import choice_match, math_match, read_accuracy, rule_match, text_match
from support.samples import make_sample, response

OPTIONS = {"A": "a cat", "B": "a dog", "C": "the left one", "D": "3"}
SAME_TEXT = [
    ("red", "red"),
    ("RED", "red"),
    ("  red\n", "red"),
    ("Red.", "red"),
    ('"stop"', "stop"),
    ("A dog.", "dog"),
    ("an apple", "the apple"),
    ("on the left", "on left"),
    ("two  words", "two words"),
    ("ｆｕｌｌ", "full"),
    ("Straße", "STRASSE"),
]
OTHER_TEXT = [
    ("red", "blue"),
    ("left", "right"),
    ("12", "1 2"),
    ("-5", "5"),
    ("", "red"),
    ("red", ""),
    ("", ""),
    ("a dog", "A"),
    ("1.5", "15"),
    (".5", "5"),
]
SAME_MATHS = [
    ("0.5", "\\frac{1}{2}"),
    ("\\frac{1}{2}", "0.5"),
    ("\\dfrac{2}{4}", "\\frac12"),
    (".5", "0.5"),
    ("1,000", "1000"),
    ("$5$", "5"),
    ("\\boxed{5}", "5"),
    ("\\(5\\)", "5"),
    ("x = 5", "5"),
    ("\\sqrt{4}", "2"),
    ("\\sqrt{8}", "2\\sqrt{2}"),
    ("1+x", "x+1"),
    ("(x+1)^2", "x^2+2x+1"),
    ("5.", "5"),
    ("A", "A"),
]
OTHER_MATHS = [
    ("0.5", "\\frac{1}{3}"),
    ("-1", "1"),
    ("(2,1)", "(1,2)"),
    ("5 or 6", "6"),
    ("5, 6, 7", "6"),
    ("$5$ $6$", "6"),
    ("0.33", "1/3"),
    ("x<1", "x>1"),
    ("x-1", "x+1"),
    ("52", "5²"),
    (".5", "5"),
    ("5!", "5"),
    ("a b", "b"),
    ("", "5"),
    ("no idea", "5"),
]
exact = st.builds(Fraction, st.integers(-99, 99), st.sampled_from([1, 2, 4, 5, 8, 10]))


@pytest.mark.parametrize(("answer", "gold"), SAME_TEXT)
def test_text_agrees_but_for_case_articles_punctuation_and_space(answer, gold):
    assert text_match(answer, gold) and text_match(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), OTHER_TEXT)
def test_other_text_does_not_agree(answer, gold):
    assert not text_match(answer, gold) and not text_match(gold, answer)


@given(st.text(min_size=1).filter(lambda text: any(map(str.isalnum, text))) | st.sampled_from(["A", "the"]))
def test_every_text_agrees_with_itself(text):
    assert text_match(text, text)


@pytest.mark.parametrize(
    "answer", ["B", "b", "(B)", "(b)", "B.", "B)", "B:", " B \n", "B. a dog", "(B) a dog"]
)
@pytest.mark.parametrize("gold", ["B", "(B)", "b", "B."])
def test_an_options_letter_is_read_in_all_its_forms(answer, gold):
    assert choice_match(answer, gold, OPTIONS)


@pytest.mark.parametrize("answer", ["a dog", "A dog.", "dog", "the dog"])
def test_an_options_text_counts_as_its_letter(answer):
    assert choice_match(answer, "B", OPTIONS)


@pytest.mark.parametrize(
    "answer", ["A", "(A)", "A. a cat", "a cat", "C", "E", "", "B or C", "dogs", "BB", "not B"]
)
def test_another_option_or_none_is_wrong(answer):
    assert not choice_match(answer, "B", OPTIONS)


def test_an_article_is_not_taken_for_the_letter_a():
    assert not choice_match("a dog", "A", OPTIONS)
    assert choice_match("a dog", "A", {"A": "a dog", "B": "a cat"})


@pytest.mark.parametrize("letter", "ABCD")
def test_every_letter_agrees_with_itself_alone(letter):
    assert [other for other in OPTIONS if choice_match(letter, other, OPTIONS)] == [letter]


def test_an_options_text_may_begin_like_a_letter():
    assert choice_match("A. Smith", "B", {"A": "J. Doe", "B": "A. Smith"})


@pytest.mark.parametrize(("answer", "right"), [("B", True), ("(B)", True), ("B. a dog", True), ("A", False)])
def test_letters_are_compared_where_the_options_stand_in_the_question(answer, right):
    assert choice_match(answer, "B", {}) is right


def test_options_may_be_named_by_small_letters():
    options = {"a": "cat", "b": "dog"}
    assert choice_match("b", "b", options) and choice_match("(B)", "b", options)
    assert not choice_match("a", "b", options)


@pytest.mark.parametrize(("answer", "gold"), SAME_MATHS)
def test_equal_mathematics_agrees(answer, gold):
    assert math_match(answer, gold)


@pytest.mark.parametrize(("answer", "gold"), OTHER_MATHS)
def test_unequal_mathematics_does_not_agree(answer, gold):
    assert not math_match(answer, gold)


@settings(max_examples=40, deadline=None)
@given(exact, exact)
def test_decimals_and_fractions_agree_when_they_are_equal(a, b):
    sign = "-" if a < 0 else ""
    fraction = f"{sign}\\frac{{{abs(a.numerator)}}}{{{a.denominator}}}"
    assert math_match(str(float(a)), fraction)
    assert math_match(str(float(b)), fraction) == (a == b)


@pytest.mark.parametrize(
    ("check", "answer", "gold", "right"),
    [
        ("text", "0.5", "\\frac{1}{2}", False),
        ("math", "0.5", "\\frac{1}{2}", True),
        ("text", "(B)", "B", False),
        ("choice", "(B)", "B", True),
        ("choice", "dog", "B", True),
        ("text", "A dog", "dog", True),
    ],
)
def test_each_sample_is_judged_by_its_own_check(check, answer, gold, right):
    assert rule_match(make_sample(answer=gold, check=check, options=OPTIONS), answer) is right


def test_a_right_answer_is_worth_one_and_needs_no_judge():
    assert read_accuracy(make_sample(answer="red"), response("Hm.", " Red. ")) == 1.0


def test_what_no_rule_matched_is_a_question_for_the_judge():
    sample = make_sample(answer="red")
    assert read_accuracy(sample, response("Hm.", " crimson\n")) == Agreement(sample, "crimson")


@pytest.mark.parametrize("text", ["red", "", "<answer></answer>", "<answer> \n</answer>", "<answer>red"])
def test_without_an_answer_block_nothing_is_right(text):
    assert read_accuracy(make_sample(answer="red"), text) == 0.0
