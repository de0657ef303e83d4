import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivgr.core.frame import Frame
from ivgr.judge import CONSISTENCY_SCORES, Agreement, Comparison
from ivgr.toy import RuleJudge
from support.samples import RELATIVE, make_sample

SAMPLE = make_sample()
ROWS, COLUMNS = ("upper", "middle", "lower"), ("left", "center", "right")
VALUES = {
    "place": [f"{row} {column}" for row in ROWS for column in COLUMNS],
    "color": ["red", "blue", "green"],
    "size": ["small", "large"],
}
frames = st.builds(Frame, st.integers(30, 4000).map(float), st.integers(30, 4000).map(float))
facts = st.fixed_dictionaries(
    {},
    optional={
        (name, attribute): st.sampled_from(values)
        for name in ("red circle", "cross")
        for attribute, values in VALUES.items()
    },
)
SCENE = "The red circle is in the upper left. The cross is large."
CIRCLE, LOWER = "The red circle is in the upper left.", "The red circle is in the lower left."
BLUE = "The cross is blue."


def judged(reference: str, reasoning: str, frame: Frame = RELATIVE) -> float:
    (score,) = RuleJudge().compare([Comparison(SAMPLE, reference, reasoning, frame)])
    return score


def box_in(place: str, frame: Frame) -> str:
    """A box whose centre is that of the named ninth of the frame."""
    row, column = place.split()
    x = (2 * COLUMNS.index(column) + 1) * frame.width / 6
    y = (2 * ROWS.index(row) + 1) * frame.height / 6
    return f"<box>[{x - 3},{y - 2},{x + 3},{y + 2}]</box>"


def say(known: dict, frame: Frame, boxes: bool) -> str:
    def predicate(attribute: str, value: str) -> str:
        if attribute != "place":
            return value
        return f"at {box_in(value, frame)}" if boxes else f"in the {value}"

    return " ".join(f"The {name} is {predicate(about, value)}." for (name, about), value in known.items())


def rubric(reference: dict, stated: dict) -> float:
    if not stated or any(reference.get(about, value) != value for about, value in stated.items()):
        return 0.0
    extra, missing = set(stated) - set(reference), set(reference) - set(stated)
    return 0.3 if extra and missing else 0.7 if extra or missing else 1.0


@given(facts, facts, frames, st.booleans(), st.booleans())
def test_the_rubric_holds_for_all_reasonings_in_boxes_and_words(reference, stated, frame, boxed, also_boxed):
    score = judged(say(reference, frame, boxed), say(stated, frame, also_boxed), frame)
    assert score == rubric(reference, stated)
    assert score in CONSISTENCY_SCORES


@given(facts.filter(bool), frames, st.randoms())
def test_the_same_facts_in_another_order_agree_fully(known, frame, random):
    shuffled = dict(random.sample(list(known.items()), len(known)))
    assert judged(say(known, frame, True), say(shuffled, frame, False), frame) == 1.0


@pytest.mark.parametrize(
    ("reasoning", "score"),
    [
        (SCENE, 1.0),
        (f"{SCENE} {BLUE}", 0.7),
        (CIRCLE, 0.7),
        (f"{CIRCLE} {BLUE}", 0.3),
        (BLUE, 0.3),
        (f"{LOWER} The cross is large.", 0.0),
        (f"{SCENE} The cross is small.", 0.0),
        (f"{SCENE} {LOWER}", 0.0),
        ("", 0.0),
        ("I see nothing.", 0.0),
    ],
)
def test_each_score_of_the_rubric_is_given(reasoning, score):
    assert judged(SCENE, reasoning) == score


@pytest.mark.parametrize("reasoning", ["", "Hm."])
def test_silence_agrees_with_nothing_not_even_silence(reasoning):
    assert judged("", reasoning) == 0.0


def test_a_reference_that_claims_nothing_only_lets_one_add():
    assert judged("Hm.", CIRCLE) == 0.7


def test_a_boxs_place_depends_on_the_frame():
    reference = "The red circle is at <box>[100,100,200,200]</box>."
    assert judged(reference, CIRCLE, Frame(1000, 1000)) == 1.0
    assert judged(reference, CIRCLE, Frame(300, 300)) == 0.0
    assert judged(reference, "The red circle is in the middle center.", Frame(300, 300)) == 1.0


def test_an_invalid_box_claims_nothing():
    assert judged(SCENE, f"{SCENE} The ring is at <box>[9,9,1,1]</box>.") == 1.0


def test_reasoning_that_contradicts_itself_is_worth_nothing():
    assert judged(BLUE, f"{BLUE} {CIRCLE} {LOWER}") == 0.0


@given(st.text())
def test_the_judge_agrees_to_no_answer_beyond_the_rules(answer):
    assert RuleJudge().agree([Agreement(SAMPLE, answer)]) == [False]
