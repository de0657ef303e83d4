"""Rows of a batch against a simulation: every branch decodes once, in a row of its own, and no row that
fits a waiting prompt stays empty."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivgr.core.query import Group, Query
from ivgr.rollout.batch_rows import BatchRows, Prompt

SIZES = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=8)


def prompts_of(sizes: list[list[int]]) -> list[Prompt]:
    """Prompts whose groups have `sizes` branches, numbered in order."""
    numbers = iter(range(1000))
    return [
        Prompt(
            Query(sample=None, prefix=None, groups=[]),
            [(Group("textual", None), [next(numbers) for _ in range(size)]) for size in groups],
        )
        for groups in sizes
    ]


def simulate(rows: BatchRows, lengths: list[int], branches: int, prefixes: int) -> tuple[list[int], int]:
    """Decodes branch n in lengths[n] steps; returns the branches in the order in which they began, and the
    steps."""
    begun, steps, left = [], 0, {}
    while True:
        for seated in rows.seat():
            assert len(set(seated.rows)) == len(seated.prompt.branches) and not set(seated.rows) & left.keys()
            left |= {
                row: lengths[number] for row, number in zip(seated.rows, seated.prompt.branches, strict=True)
            }
            begun += seated.prompt.branches
        assert left.keys() == rows.taken.keys() and len(left) <= branches
        assert len({seated.prefix for seated in rows.taken.values()}) <= prefixes
        if not left:
            assert not rows.waiting
            return begun, steps
        if rows.waiting and rows.refill and rows.free_prefixes:
            assert len(rows.waiting[0].branches) > branches - len(left)
        steps += 1
        left = {row: count - 1 for row, count in left.items()}
        for row in [row for row, count in left.items() if not count]:
            rows.release(row)
            del left[row]


@given(
    sizes=SIZES, branches=st.integers(1, 12), prefixes=st.integers(1, 5), refill=st.booleans(), data=st.data()
)
def test_every_branch_decodes_once_in_order(sizes, branches, prefixes, refill, data):
    total = sum(map(sum, sizes))
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=total, max_size=total))
    rows = BatchRows(prompts_of(sizes), branches, prefixes, refill)
    begun, steps = simulate(rows, lengths, branches, prefixes)
    assert begun == list(range(total))
    assert max(lengths) <= steps <= sum(lengths)


@given(sizes=SIZES, branches=st.integers(12, 24), data=st.data())
def test_refilling_takes_no_more_steps(sizes, branches, data):
    """Where every prompt fits whole and prefixes are no bound."""
    total = sum(map(sum, sizes))
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=total, max_size=total))
    refilled, static = (
        simulate(BatchRows(prompts_of(sizes), branches, 8, refill), lengths, branches, 8)[1]
        for refill in (True, False)
    )
    assert refilled <= static


def test_an_ended_branch_makes_room_for_the_next_prompt():
    rows = BatchRows(prompts_of([[2], [2], [1]]), branches=4, prefixes=3, refill=True)
    first, second = rows.seat()
    assert (first.rows, second.rows, second.prefix) == ([0, 1], [2, 3], 1) and not rows.seat()
    rows.release(2)
    (third,) = rows.seat()
    assert (third.rows, third.prefix, third.prompt.branches) == ([2], 2, [4])


def test_without_refilling_the_next_prompts_wait_for_an_empty_batch():
    rows = BatchRows(prompts_of([[2], [1]]), branches=2, prefixes=2, refill=False)
    rows.seat()
    rows.release(0)
    assert not rows.seat()
    rows.release(1)
    assert [seated.rows for seated in rows.seat()] == [[0]]


def test_a_prompt_larger_than_the_batch_goes_in_parts():
    rows = BatchRows(prompts_of([[3, 2]]), branches=2, prefixes=1, refill=True)
    parts = []
    while seated := rows.seat():
        parts += [[branches for _, branches in one.prompt.groups] for one in seated]
        for row in list(rows.taken):
            rows.release(row)
    assert parts == [[[0, 1]], [[2], [3]], [[4]]]


def test_rows_that_are_left_close_up():
    rows = BatchRows(prompts_of([[2], [2]]), branches=4, prefixes=2, refill=True)
    rows.seat()
    for row in (0, 1, 2):
        rows.release(row)
    assert rows.close_up() == ([3], [1]) and list(rows.taken) == [0]
    assert rows.taken[0].prompt.branches == [3]
    rows.release(0)
    assert not rows.taken


def test_branches_that_are_put_back_come_first_and_together():
    rows = BatchRows(prompts_of([[1], [2, 2], [1]]), branches=5, prefixes=2, refill=True)
    rows.seat()
    for row in (4, 2, 3):
        rows.put_back(row)
    first, second = rows.waiting
    assert [branches for _, branches in first.groups] == [[2], [3, 4]] and second.branches == [5]
    assert sorted(rows.taken) == [0, 1] and sorted(rows.free) == [2, 3, 4]
    rows.release(0)
    (again,) = rows.seat()
    assert again.prompt.branches == [2, 3, 4]


@given(room=st.integers(0, 9), sizes=SIZES)
def test_no_more_branches_are_seated_than_there_is_room_for(room, sizes):
    rows = BatchRows(prompts_of(sizes), branches=20, prefixes=8, refill=True)
    rows.seat(room)
    assert len(rows.taken) <= max(room, 1)
    assert rows.taken  # an empty batch takes one branch at least


def test_a_row_is_released_once():
    rows = BatchRows(prompts_of([[1]]), branches=1, prefixes=1, refill=True)
    rows.seat()
    rows.release(0)
    with pytest.raises(KeyError):
        rows.release(0)
