import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ivgr.core.errors import UserError
from ivgr.core.frame import Frame
from ivgr.core.query import Query, Rollout
from ivgr.judge import Agreement, Comparison, RulesAlone
from ivgr.judge.protocol import take_verdicts
from ivgr.rewards.archive import Archive
from ivgr.rewards.rewards import Rewards, TermConfig
from support.samples import RELATIVE, RecordingJudge, make_query, make_rollout, make_sample, response
from support.scored import NAMES, score, weights

WHOLE = "The red circle is at <box>[100,100,300,300]</box>."
HALF = "The red circle is at <box>[100,100,300,200]</box>."
HALF_VALID = HALF + " The ring is at <box>[9,9,1,1]</box>."
PLACE = "The red circle is in the upper left."


def roll(think: str, answer: str = "red") -> Rollout:
    return make_rollout(response(think, answer))


def paired(grounded: list, textual: list, sample_id: str = "s0", frame: Frame | None = None) -> Query:
    frames = {"frame": frame} if frame else {}
    return make_query(make_sample(sample_id), grounded=grounded, textual=textual, **frames)


def test_the_papers_weights_are_the_default():
    grounded, textual, single = roll(HALF), roll(PLACE), roll("Hm.")
    score(paired([grounded], [textual]), make_query(make_sample("s1", kind="single"), single=[single]))
    assert grounded.reward == pytest.approx(1 + 1 + 0.5)
    assert textual.reward == pytest.approx(1 + 1 + 1)
    assert single.reward == pytest.approx(1 + 1.5)


@given(weights)
def test_each_stream_sums_its_own_terms_by_their_weights(weight):
    grounded, textual, single = roll(HALF_VALID), roll(PLACE), roll("Hm.")
    query = paired([grounded], [textual])
    alone = make_query(make_sample("s1", kind="single"), single=[single])
    score(query, alone, judge=RecordingJudge(score=0.7), **weight)
    common = weight["format"] + weight["accuracy"]
    assert grounded.reward == pytest.approx(common + weight["box"] * 0.5 + weight["validity"] * 0.5)
    assert textual.reward == pytest.approx(common + weight["consistency"] * 0.7)
    assert single.reward == pytest.approx(weight["format"] + weight["single_accuracy"])


def test_every_term_is_logged_before_weighting():
    grounded, textual, single = roll(HALF_VALID), roll(PLACE), roll("Hm.")
    alone = make_query(make_sample("s1", kind="single"), single=[single])
    score(paired([grounded], [textual]), alone, judge=RecordingJudge(score=0.7), **dict.fromkeys(NAMES, 9.0))
    assert grounded.terms == pytest.approx({"format": 1, "accuracy": 1, "box": 0.5, "validity": 0.5})
    assert textual.terms == pytest.approx({"format": 1, "accuracy": 1, "consistency": 0.7})
    assert single.terms == pytest.approx({"format": 1, "accuracy": 1})


@pytest.mark.parametrize("name", ["format", "accuracy", "consistency"])
def test_a_weight_of_zero_takes_the_term_from_the_sum_but_logs_it(name):
    textual = roll(PLACE)
    score(paired([roll(WHOLE)], [textual]), **{name: 0.0})
    assert textual.terms[name] == 1.0 and textual.reward == pytest.approx(2.0)


def test_a_wrong_answer_and_a_broken_form_earn_nothing():
    wrong, broken = roll(PLACE, "blue"), make_rollout("red")
    score(paired([], [wrong, broken]))
    assert (wrong.reward, broken.reward) == (1.0, 0.0)


def test_the_judge_may_still_find_an_answer_right():
    grounded = roll(WHOLE, "crimson")
    score(paired([grounded], []), judge=RecordingJudge(agrees=True))
    assert grounded.terms["accuracy"] == 1.0 and grounded.reward == pytest.approx(3.0)


def test_without_a_reference_consistency_is_zero_and_nobody_is_asked():
    judge, textual = RecordingJudge(score=1.0), roll(PLACE)
    score(paired([roll(WHOLE, "blue"), roll("No box.")], [textual]), judge=judge)
    assert textual.terms["consistency"] == 0.0 and textual.reference is None and judge.comparisons == []


def test_this_iterations_grounded_rollouts_are_the_reference_already():
    judge, textual = RecordingJudge(), roll(PLACE)
    score(paired([roll(HALF), roll(WHOLE)], [textual]), judge=judge)
    assert textual.reference == WHOLE and textual.terms["consistency"] == 0.7
    assert [(reference, think) for reference, think, _ in judge.comparisons] == [(WHOLE, PLACE)]


def test_the_order_of_streams_and_queries_does_not_matter():
    first, second = roll(PLACE), roll(PLACE)
    early = make_query(make_sample("s0"), textual=[first])
    late = make_query(make_sample("s0"), textual=[second], grounded=[roll(WHOLE)])
    score(early, late)
    assert first.reference == second.reference == WHOLE


def test_a_better_reference_of_an_earlier_iteration_stays():
    archive, textual = Archive(), roll(PLACE)
    score(paired([roll(WHOLE)], []), archive=archive)
    score(paired([roll(HALF)], [textual]), archive=archive)
    assert textual.reference == WHOLE


def test_a_better_reference_of_this_iteration_takes_over():
    archive, textual = Archive(), roll(PLACE)
    score(paired([roll(HALF)], []), archive=archive)
    score(paired([roll(WHOLE)], [textual]), archive=archive)
    assert textual.reference == WHOLE


def test_switched_off_an_earlier_reference_is_gone():
    archive, textual = Archive(persistent=False), roll(PLACE)
    score(paired([roll(WHOLE)], []), archive=archive)
    score(paired([roll(HALF, "blue")], [textual]), archive=archive)
    assert textual.reference is None and textual.terms["consistency"] == 0.0


def test_queries_are_compared_with_their_own_reference_only():
    mine, other = roll(PLACE), roll(PLACE)
    score(paired([roll(WHOLE)], [mine], "s0"), paired([roll("No box.")], [other], "s1"))
    assert (mine.reference, other.reference) == (WHOLE, None)


def test_the_judge_is_told_the_frame_of_the_boxes():
    judge, frame = RecordingJudge(), Frame(448.0, 336.0)
    score(paired([roll(WHOLE)], [roll(PLACE)], frame=frame), judge=judge)
    assert judge.comparisons == [(WHOLE, PLACE, frame)]


@pytest.mark.parametrize(
    ("think", "consistency"),
    [
        (PLACE, 1.0),
        (PLACE + " The cross is large.", 0.7),
        ("The cross is large.", 0.3),
        ("The red circle is in the lower left.", 0.0),
    ],
)
def test_textual_reasoning_is_graded_by_how_well_it_agrees(think, consistency):
    textual = roll(think)
    score(paired([roll(WHOLE)], [textual]))
    assert textual.reward == pytest.approx(2 + consistency)


def test_boxes_do_not_pay_in_the_textual_stream():
    """METHOD: textual output has no boxes, and something must penalise those written there."""
    boxed, plain = roll(WHOLE), roll(PLACE)
    score(paired([roll(WHOLE)], [boxed, plain]))
    assert boxed.reward < plain.reward


def test_scoring_again_gives_the_same():
    grounded, textual = roll(HALF), roll(PLACE)
    query, archive = paired([grounded], [textual]), Archive()
    score(query, archive=archive)
    first = grounded.reward, textual.reward, dict(textual.terms)
    score(query, archive=archive)
    assert (grounded.reward, textual.reward, textual.terms) == first


def test_a_rollout_whose_verdict_is_missing_has_no_reward_and_no_such_term():
    unsure, textual = roll(WHOLE, "crimson"), roll(PLACE)
    score(paired([unsure, roll(WHOLE)], [textual]), judge=RecordingJudge(agrees=None, score=None))
    assert unsure.reward is None and "accuracy" not in unsure.terms and unsure.terms["box"] == 1.0
    assert textual.reward is None and "consistency" not in textual.terms and textual.reference == WHOLE


def test_an_answer_without_a_verdict_does_not_qualify_for_the_archive():
    archive = Archive()
    score(paired([roll(WHOLE, "crimson")], []), judge=RecordingJudge(agrees=None), archive=archive)
    assert len(archive) == 0


def test_a_missing_term_of_weight_zero_leaves_the_reward_whole():
    textual = roll(PLACE)
    score(paired([roll(WHOLE)], [textual]), judge=RecordingJudge(score=None), consistency=0.0)
    assert textual.reward == 2.0


def test_a_verdict_that_is_missing_the_second_time_does_not_stay():
    textual = roll(PLACE)
    query = paired([roll(WHOLE)], [textual])
    score(query)
    score(query, judge=RecordingJudge(score=None))
    assert textual.reward is None and "consistency" not in textual.terms


def test_identical_questions_are_asked_once():
    judge = RecordingJudge(agrees=True)
    score(paired([roll(WHOLE, "crimson"), roll(HALF, "crimson")], [roll(PLACE), roll(PLACE)]), judge=judge)
    assert judge.answers == ["crimson"] and len(judge.comparisons) == 1


def test_the_same_answer_to_another_question_is_another_question():
    judge = RecordingJudge(agrees=True)
    queries = [paired([roll(WHOLE, "crimson")], [], sample_id) for sample_id in ("s0", "s1")]
    score(*queries, judge=judge)
    assert judge.answers == ["crimson", "crimson"]


ODD = [float("nan"), float("inf"), -float("inf"), 1e30, -0.1, "0.7", [0.7], torch.tensor(0.7)]


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_what_is_no_score_is_a_verdict_that_never_came(odd):
    textual, other = roll(PLACE), roll(PLACE + " Hm.")
    score(paired([roll(WHOLE)], [textual, other]), judge=RecordingJudge(score=odd))
    assert textual.reward is None and "consistency" not in textual.terms


@pytest.mark.parametrize("odd", [*ODD, 0.7, 2], ids=str)
def test_what_neither_agrees_nor_disagrees_is_a_verdict_that_never_came(odd):
    unsure = roll(WHOLE, "crimson")
    score(paired([unsure], []), judge=RecordingJudge(agrees=odd))
    assert unsure.reward is None and "accuracy" not in unsure.terms


@given(st.sampled_from([0, 1, True, False, 0.0, 1.0, 0.3, 0.55, np.float64(0.3), np.float32(1), None]))
def test_a_verdict_in_its_range_is_taken_as_it_is(verdict):
    asked = Comparison(make_sample(), WHOLE, PLACE, RELATIVE)
    assert take_verdicts([asked], [verdict]) == [verdict]
    assert take_verdicts([Agreement(make_sample(), "red")], [verdict]) == [
        verdict if verdict in (0, 1, None) else None
    ]


def test_a_judge_that_leaves_questions_out_is_one_line():
    judge = RecordingJudge()
    judge.agree = lambda questions: []
    with pytest.raises(UserError, match="gave 0 verdicts on 1 questions"):
        score(paired([roll(WHOLE, "crimson")], []), judge=judge)


@pytest.mark.parametrize("name", ["accuracy", "single_accuracy", "consistency"])
def test_a_term_that_asks_a_judge_needs_one_unless_its_weight_is_zero(name):
    none = dict.fromkeys(("accuracy", "single_accuracy", "consistency"), TermConfig(weight=0.0))
    with pytest.raises(UserError, match=f"model.judge: .* model.rewards.{name} ask") as error:
        Rewards(**none | {name: TermConfig(weight=0.5)}).choose_judge(None)
    assert "\n" not in str(error.value)
    assert isinstance(Rewards(**none).choose_judge(None), RulesAlone)
    judge = RecordingJudge()
    assert Rewards().choose_judge(judge) is Rewards(**none).choose_judge(judge) is judge
