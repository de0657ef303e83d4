"""Sampling from a nucleus without sorting, against a full sort (without a GPU in Triton's interpreter)."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ivgr.kernels.nucleus_triton import redraw
from support.full_sort import by_full_sort
from support.kernel_cases import DEVICE

LATEST = 1 - 2**-53  # the largest draw


def check(probability, draw, top_p):
    """Every row's token and total are those of a full sort."""
    token, total = torch.full((len(draw),), -1), torch.zeros(len(draw), dtype=torch.float64)
    token, total, asked = (t.to(DEVICE) for t in (token, total, torch.ones(len(draw), dtype=torch.bool)))
    redraw(probability.to(DEVICE), draw.to(DEVICE), top_p, asked, token, total)
    tokens, totals = by_full_sort(probability, draw, top_p)
    assert token.tolist() == tokens
    assert total.tolist() == pytest.approx(totals, rel=1e-14)


@settings(max_examples=12)
@given(
    seed=st.integers(0, 10**6),
    words=st.sampled_from([7, 128, 200]),
    spread=st.floats(0, 9),
    digits=st.sampled_from([0, 1, 9]),
    top_p=st.floats(0.05, 1.0),
    draw=st.none() | st.sampled_from([0.0, LATEST]),
)
@example(0, 200, 1.0, 0, 1.0, None)
def test_a_token_is_that_of_a_full_sort(seed, words, spread, digits, top_p, draw):
    """Logits of few digits are often equal; those of few words have some that cannot be chosen."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(1, words, generator=generator) * spread).round(decimals=digits)
    if words < 10:
        logits[:, ::3] = -torch.inf
    drawn = torch.rand(1, generator=generator, dtype=torch.float64)
    check(logits.softmax(-1), drawn if draw is None else torch.full_like(drawn, draw), top_p)


def test_equal_tokens_are_cut_where_they_reach_top_p():
    """Sums of 64ths are exact: with top_p of 3/4, 48 of 64 equal tokens are kept."""
    flat = torch.full((4, 64), 1 / 64)
    check(flat, torch.tensor([0.0, 1 / 48 + 1e-12, 0.5 + 1e-12, LATEST], dtype=torch.float64), 0.75)


def test_a_vocabulary_of_several_blocks():
    logits = torch.randn(1, 9001, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    check(logits.softmax(-1), torch.tensor([0.6], dtype=torch.float64), 0.99)


@pytest.mark.slow
def test_a_real_vocabulary():
    logits = torch.randn(2, 152_064, generator=torch.Generator().manual_seed(1)).bfloat16().float() * 2
    check(logits.softmax(-1), torch.tensor([0.3, 0.9999], dtype=torch.float64), 0.99)


def test_rows_that_are_not_asked_stay_what_they_are():
    probability = torch.full((3, 8), 1 / 8, device=DEVICE)
    token = torch.full((3,), 99, device=DEVICE)
    total = torch.full((3,), math.pi, dtype=torch.float64, device=DEVICE)
    draw = torch.full((3,), 0.3, dtype=torch.float64, device=DEVICE)
    redraw(probability, draw, 1.0, torch.tensor([False, True, False], device=DEVICE), token, total)
    assert token.tolist() == [99, 2, 99]
    assert total.tolist() == [math.pi, 1.0, math.pi]
