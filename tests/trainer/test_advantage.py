"""Advantages within a group, also where verdicts are missing."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivgr.trainer.advantage import group_advantages

rewards = st.floats(0, 3).map(lambda value: round(value, 3))
groups = st.lists(st.one_of(st.none(), rewards), min_size=1, max_size=8)


@given(st.lists(rewards, min_size=2, max_size=8))
def test_complete_groups_follow_the_formula(group):
    mean, std = statistics.fmean(group), statistics.stdev(group)
    expected = [(reward - mean) / (std + 1e-6) for reward in group]
    assert group_advantages(group) == pytest.approx(expected, abs=1e-6)


@given(groups)
def test_a_missing_reward_changes_nothing_for_the_others_and_gets_zero(group):
    known = [reward for reward in group if reward is not None]
    advantages = group_advantages(group)
    assert [a for a, reward in zip(advantages, group, strict=True) if reward is None] == [0.0] * (
        len(group) - len(known)
    )
    others = [a for a, reward in zip(advantages, group, strict=True) if reward is not None]
    assert others == (group_advantages(known) if known else [])


@pytest.mark.parametrize("group", [[None], [None, None], [2.0, None], [None, None, 0.5], [1.0]])
def test_fewer_than_two_known_rewards_give_no_advantage(group):
    assert group_advantages(group) == [0.0] * len(group)


@given(rewards, st.integers(1, 8))
def test_equal_rewards_give_exactly_zero(reward, count):
    assert group_advantages([reward] * count) == [0.0] * count


@given(groups, st.sampled_from([math.nan, math.inf, -math.inf]))
def test_a_reward_that_is_not_finite_is_a_missing_one(group, odd):
    broken = [odd if reward is None else reward for reward in group]
    assert group_advantages(broken) == group_advantages(group)
