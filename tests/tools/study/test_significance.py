"""The study's statistics against scipy and against brute force."""

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import special, stats

from ivgr.core.errors import UserError
from ivgr.tools.study.significance import estimate, holm, sign_flip_p, student_quantile, student_within

numbers = st.floats(-10, 10).map(lambda value: round(value, 3))


@given(st.floats(0, 50), st.integers(1, 60))
@example(2.352097907433264e-09, 1)
def test_students_probability_is_scipys(t, freedom):
    """Of its incomplete beta function: the difference of two values of t.cdf is 0 near t = 0."""
    expected = special.betainc(0.5, freedom / 2, t * t / (freedom + t * t))
    assert student_within(t, freedom) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 9, 19])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_students_quantile_is_scipys(level, freedom):
    assert student_quantile(level, freedom) == pytest.approx(stats.t.ppf((1 + level) / 2, freedom), rel=1e-9)


@given(st.lists(numbers, min_size=2, max_size=12))
def test_the_interval_is_scipys(values):
    found = estimate(values)
    assert found.mean == pytest.approx(statistics.fmean(values)) and found.count == len(values)
    if len(set(values)) > 1:
        expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert (found.low, found.high) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_one_seed_has_no_interval():
    found = estimate([0.5])
    assert found.mean == 0.5 and math.isnan(found.low) and math.isnan(found.high)


@given(st.lists(st.integers(-8, 8), min_size=1, max_size=9))
def test_the_test_is_a_count_over_all_signs(differences):
    """Brute force in whole numbers, ties and zeros included."""
    signs = itertools.product((1, -1), repeat=len(differences))
    sums = [sum(s * d for s, d in zip(sign, differences, strict=True)) for sign in signs]
    extreme = sum(abs(total) >= abs(sum(differences)) for total in sums)
    assert sign_flip_p([d / 10 for d in differences]) == extreme / len(sums)


@given(st.lists(numbers.filter(bool), min_size=2, max_size=8))
def test_the_test_is_scipys(differences):
    found = stats.permutation_test(
        (np.array(differences),), lambda d, axis: np.abs(np.round(d.sum(axis), 6)),
        permutation_type="samples", n_resamples=np.inf, alternative="greater", vectorized=True,
    )  # fmt: skip
    assert sign_flip_p(differences) == pytest.approx(found.pvalue)


@pytest.mark.parametrize("count", [3, 8, 10])
def test_the_smallest_p_is_two_of_all_signs(count):
    assert sign_flip_p([0.1 + 0.01 * n for n in range(count)]) == 2 / 2**count


def test_too_many_seeds_are_refused():
    with pytest.raises(UserError, match="21 paired seeds"):
        sign_flip_p([1.0] * 21)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6, 0.001]) == pytest.approx([1.0, 1.0, 0.003])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_between_the_plain_and_bonferronis(ps):
    for p, adjusted in zip(ps, holm(ps), strict=True):
        assert p <= adjusted <= min(1, len(ps) * p) + 1e-12
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    assert [holm(ps)[i] for i in order] == sorted(holm(ps))
