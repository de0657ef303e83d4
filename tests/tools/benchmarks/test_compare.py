"""Intervals and paired differences against closed forms and enumeration."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivgr.core.errors import UserError
from ivgr.core.resampling import interval, mean_of_groups, resample
from ivgr.tools.benchmarks.analyses import (
    bucket_lines,
    bucket_of,
    cost_lines,
    gap_lines,
    plot_analyses,
    read_runs,
)
from ivgr.tools.benchmarks.benchmarks import BENCHMARKS
from ivgr.tools.benchmarks.compare import compare_rows, mcnemar, tabulate
from ivgr.tools.benchmarks.tables import Column, average_of, figures_of, lines_of, notes_of

PLAIN, CYCLES, SOURCES = BENCHMARKS["vstar"], BENCHMARKS["hrbench4k"], BENCHMARKS["cv-bench-2d"]


def line(index, verdict, iou=None, predicted="", gold="A", question=None, tokens=1, boxes=(), **groups):
    return {
        "index": str(index), "verdict": verdict, "iou": iou, "predicted": predicted, "gold": gold,
        "why": "option",
        "question": question or f"q{index}", "options": {}, "groups": groups, "tokens": tokens, "crops": 0,
        "boxes": list(boxes), "answer_from": "answer block",
    }  # fmt: skip


@pytest.mark.parametrize(("only_a", "only_b"), itertools.product(range(7), range(7)))
def test_mcnemar_by_tossing_every_coin(only_a, only_b):
    count = only_a + only_b
    gap = abs(only_a - only_b)
    tosses = list(itertools.product((0, 1), repeat=count))
    as_uneven = sum(abs(2 * sum(toss) - count) >= gap for toss in tosses)
    assert mcnemar(only_a, only_b) == pytest.approx(as_uneven / len(tosses))


def test_mcnemar_of_many_rows_against_the_normal_law():
    for only_a, only_b in ((2000, 2100), (30_000, 30_000), (500, 300)):
        z = (abs(only_a - only_b) - 1) / math.sqrt(only_a + only_b)  # with Yates' correction
        assert mcnemar(only_a, only_b) == pytest.approx(min(1, math.erfc(max(z, 0) / math.sqrt(2))), rel=0.1)


def test_mcnemar_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    for a, b in ((3, 9), (0, 6), (50, 71), (1, 1)):
        assert mcnemar(a, b) == pytest.approx(stats.binomtest(a, a + b).pvalue)


@pytest.mark.parametrize(("count", "right"), [(400, 250), (100, 50), (1000, 30)])
def test_the_interval_of_a_mean_is_the_binomial_one(count, right):
    units = np.stack([np.arange(count) < right, np.ones(count)], 1)
    scores = mean_of_groups(resample(units, 4000))
    share = right / count
    error = math.sqrt(share * (1 - share) / count)
    assert scores.std() == pytest.approx(error, rel=0.06) and scores.mean() == pytest.approx(
        share, abs=error / 10
    )
    low, high = interval(scores)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.08)


def test_resampling_is_the_same_every_time_and_keeps_the_number_of_rows():
    units = np.arange(21.0).reshape(7, 3)
    units[:, 2] = 1
    assert (resample(units, 150, seed=3) == resample(units, 150, seed=3)).all()
    assert (resample(units, 150, seed=3) != resample(units, 150, seed=4)).any()
    assert (resample(units, 150)[:, 2] == 7).all() and resample(units, 150).shape == (150, 3)


def test_groups_are_averaged_and_an_empty_one_is_left_out():
    # 3 of 4, 1 of 2, none of none
    assert mean_of_groups(np.array([3, 1, 0, 4, 2, 0])) == pytest.approx((3 / 4 + 1 / 2) / 2)
    rows = [line(n, n < 3, source="ADE20K") for n in range(4)] + [
        line(n, n == 4, source="COCO") for n in (4, 5)
    ]
    assert figures_of([{**row, "answer_from": ""} for row in rows], "cv-bench-2d")[0].value == pytest.approx(
        62.5
    )
    assert figures_of(rows, "cv-bench-3d")[0].value == pytest.approx(100 * 4 / 6)
    assert tabulate(rows, SOURCES, [None] * 6).sum() == 0


def test_the_cycles_of_a_question_are_one_unit_and_their_means_are_averaged():
    rows = [
        line(
            4 * q + c,
            (q + c) % 3 == 0,
            question=f"q{q}",
            cycle_category=str(c),
            category="single" if q < 6 else "cross",
        )
        for q in range(10)
        for c in range(4)
    ]
    table = tabulate(rows, CYCLES, [row["verdict"] for row in rows])
    assert table.shape == (10, 8) and (table[:, 4:] == 1).all()
    by_cycle = [
        sum(row["verdict"] for row in rows if row["groups"]["cycle_category"] == str(c)) / 10
        for c in range(4)
    ]
    figures = {figure.part: figure for figure in figures_of(rows, "hrbench4k")}
    assert figures[""].value == pytest.approx(100 * sum(by_cycle) / 4)
    assert set(figures) == {"", "single", "cross"} and figures["cross"].rows == 16
    alike = [line(n, n // 4 < 5, question=f"q{n // 4}", cycle_category=str(n % 4)) for n in range(40)]
    apart = [{**row, "question": row["index"]} for row in alike]
    widths = [
        figure.high - figure.low for rows in (alike, apart) for figure in figures_of(rows, "hrbench4k")[:1]
    ]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.2)


yes = st.sampled_from(["Yes", "No", ""])


@given(st.lists(st.tuples(yes, st.sampled_from(["Yes", "No", "yes"])), min_size=1, max_size=30))
def test_yes_and_no_against_counting(pairs):
    rows = [
        line(n, said.lower() == gold.lower(), predicted=said, gold=gold)
        for n, (said, gold) in enumerate(pairs)
    ]
    figures = {figure.part: figure.value / 100 for figure in figures_of(rows, "pope")}
    hits = sum(said == "Yes" and gold.lower() == "yes" for said, gold in pairs)
    said, true = sum(said == "Yes" for said, _ in pairs), sum(gold.lower() == "yes" for _, gold in pairs)
    precision, recall = hits / said if said else 0, hits / true if true else 0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0
    assert figures["precision"] == pytest.approx(precision) and figures["recall"] == pytest.approx(recall)
    assert figures[""] == pytest.approx(f1) and "F1" not in figures
    assert figures["accuracy"] == pytest.approx(sum(s.lower() == g.lower() for s, g in pairs) / len(pairs))


def test_popes_categories_count_a_row_in_each():
    """The right one three times in the whole, once in each category; F1 of 3 and of 1 right, 1 missed."""
    every = "adversarial,popular,random"
    rows = [
        line(0, True, predicted="Yes", gold="Yes", category=every),
        line(1, False, predicted="No", gold="Yes", category="popular"),
    ]
    figures = {figure.part: (figure.value, figure.rows) for figure in figures_of(rows, "pope")}
    assert figures["popular"] == (pytest.approx(200 / 3), 2)
    assert figures["random"] == figures["adversarial"] == (100, 1)
    assert figures[""] == (pytest.approx(600 / 7), 2) and figures["accuracy"] == (75, 2)
    apart = compare_rows(
        rows, [{**rows[0], "verdict": False, "predicted": "No"}, rows[1]], BENCHMARKS["pope"]
    )
    assert (apart.a, apart.b) == (pytest.approx(600 / 7), 0)


def test_a_pair_is_right_if_both_of_its_rows_are():
    rows = [line(n, right, pair=str(n // 2)) for n, right in enumerate([1, 1, 1, 0, 0, 0, 1])]
    figures = {figure.part: figure.value for figure in figures_of(rows, "mmvp")}
    assert figures == {"": pytest.approx(100 / 3), "accuracy": pytest.approx(400 / 7)}  # half a pair: none


def test_the_mean_of_the_splits_that_are_known():
    known = [("RefCOCO_val", 1), ("RefCOCO_val", 0), ("RefCOCOg_test", 1), ("mine", 0), ("mine", 0)]
    rows = [line(n, hit, split=split) for n, (split, hit) in enumerate(known)]
    assert figures_of(rows, "refcoco")[0].value == pytest.approx(75)
    assert figures_of(rows[3:], "refcoco")[0].value == 0
    parts = {figure.part: figure.value for figure in figures_of(rows, "refcoco")}
    assert parts == {"": 75, "RefCOCO_val": 50, "RefCOCOg_test": 100, "mine": 0}


def test_a_difference_and_its_interval():
    right = [(n % 10 < 6, n % 10 < 7 if n % 3 else n % 10 < 5) for n in range(600)]
    a, b = (
        [line(n, x) for n, (x, _) in enumerate(right)],
        [line(n, y) for n, (_, y) in enumerate(right)][::-1],
    )
    found = compare_rows(a, b, PLAIN)
    only_a, only_b = sum(x > y for x, y in right), sum(y > x for x, y in right)
    assert (found.rows, found.only_a, found.only_b) == (600, only_a, only_b)
    assert found.a == pytest.approx(100 * sum(x for x, _ in right) / 600)
    assert found.difference == pytest.approx(100 * (only_b - only_a) / 600)
    share = (only_b - only_a) / 600
    error = 100 * math.sqrt(((only_a + only_b) / 600 - share**2) / 600)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert found.p == mcnemar(only_a, only_b)
    back = compare_rows(b, a, PLAIN)
    assert back.difference == pytest.approx(-found.difference) and back.p == found.p


def test_a_run_does_not_differ_from_itself():
    rows = [line(n, n % 3 == 0, cycle_category=str(n % 4)) for n in range(40)]
    for benchmark in (PLAIN, CYCLES):
        found = compare_rows(rows, rows, benchmark)
        assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_rows_without_a_verdict_are_left_out_and_other_rows_refused():
    a, b = [line(n, n < 5) for n in range(8)], [line(n, None if n < 2 else n < 4) for n in range(8)]
    found = compare_rows(a, b, PLAIN)
    assert (found.rows, found.unjudged, found.only_a, found.only_b) == (6, 2, 1, 0)
    assert figures_of(b, "vstar")[0].rows == 6 and notes_of(b, "text")["unjudged"] == 2
    assert figures_of(b, "vstar")[0].value == pytest.approx(100 * 2 / 6)
    for other in (a[:-1], [*a[:-1], line(9, True)], [*a[:-1], line(7, True, gold="B")]):
        with pytest.raises(UserError, match="same rows"):
            compare_rows(a, other, PLAIN)


def test_side_by_side_and_the_average_of_what_all_have():
    rows = [line(n, n < 5, category="x") for n in range(10)]
    worse = [line(n, n < 2) for n in range(10)]
    one = Column("m", "text", figures_of(rows, "vstar") + figures_of(worse, "ai2d"), {})
    two = Column("m", "grounded", figures_of(worse, "vstar"), {})
    assert average_of([one, two]) == {"m · text": pytest.approx(50), "m · grounded": pytest.approx(20)}
    assert average_of([one]) == {"m · text": pytest.approx(35)}
    lines = lines_of([one, two])
    assert [cells[0] for cells in lines] == ["benchmark", "V*", "- x", "AI2D", "Average"]
    assert (
        lines[1][1].startswith("50.0 [")
        and lines[2][2] == lines[3][2] == "-"
        and lines[4] == ["Average", "50.0", "20.0"]
    )


def test_accuracy_by_iou_is_that_of_the_same_rows_in_every_mode(tmp_path):
    ious = [0, 0.1, 0.25, 0.26, 0.5, 0.74, 0.76, 1.0]
    assert [bucket_of(iou) for iou in ious] == [0, 1, 1, 2, 2, 3, 4, 4]
    runs = {
        "text": {"vstar": [line(n, n % 2 == 0, iou=0.0, tokens=n) for n in range(8)]},
        "grounded": {"vstar": [line(n, n > 3, iou=iou, tokens=10) for n, iou in enumerate(ious)]},
    }
    lines = bucket_lines(runs)
    assert lines[0] == ["IoU", "rows", "text", "grounded"]
    shown = [(name, rows, text.split()[0], grounded.split()[0]) for name, rows, text, grounded in lines[1:]]
    assert shown == [
        ("0", "1", "100.0", "0.0"), ("(0, 0.25]", "2", "50.0", "0.0"), ("(0.25, 0.5]", "2", "50.0", "50.0"),
        ("(0.5, 0.75]", "1", "0.0", "100.0"), ("(0.75, 1]", "2", "50.0", "100.0"),
    ]  # fmt: skip
    assert gap_lines(runs)[1][:2] == ["V*", "50.0"] and gap_lines(runs)[1][2].startswith("+0.0 [")
    assert cost_lines(runs)[1] == ["V*", "text", "3.5", "4", "7", "0.0"]
    pytest.importorskip("matplotlib")
    plot_analyses(runs, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
    with pytest.raises(UserError, match="no text, grounded or tool"):
        read_runs(tmp_path)
