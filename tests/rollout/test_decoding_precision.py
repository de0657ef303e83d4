"""What decoding computes with: scores and softmax in float32, sums and cuts of a distribution in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ivgr.rollout.prefix_kv_cache import _attend
from ivgr.rollout.sampling import HEAD, Sampling


@pytest.mark.parametrize("bias", [0.0, 10.0, 30.0])
def test_bfloat16_attention_is_exact_but_for_its_last_rounding(bias):
    """Keys have a large bias in common, as Qwen2.5-7B's do: scores up to 200, of which bfloat16
    keeps whole numbers only."""
    generator = torch.Generator().manual_seed(0)
    query, shift = torch.randn(2, 1, 1, 7, 128, generator=generator)
    keys, values = torch.randn(2, 1, 1, 500, 128, generator=generator)
    query, keys, values = (part.bfloat16() for part in (query, keys + bias * shift[:, :, :1], values))
    scaling = 128**-0.5
    out, lse = _attend(query, keys, values, torch.zeros(500), scaling)
    scores = query.double() @ keys.double().mT * scaling
    exact = scores.softmax(-1) @ values.double()
    assert (out - exact).norm() / exact.norm() < 5e-3
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1, keepdim=True), rtol=1e-5, atol=1e-4)


def by_full_sort(logits: torch.Tensor, draw: torch.Tensor, top_p: float) -> list[int]:
    """The token whose share of the nucleus, likeliest first, holds `draw`."""
    found = []
    for row, point in zip(logits.softmax(-1).double(), draw.tolist(), strict=True):
        falling, order = row.sort(descending=True, stable=True)
        kept = falling[(falling.cumsum(0) - falling) < top_p]
        inside = (kept.cumsum(0) / kept.sum() > point).nonzero()
        found.append(int(order[inside[0, 0] if len(inside) else len(kept) - 1]))
    return found


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    peaks=st.lists(st.floats(0, 25), min_size=1, max_size=5),
    top_p=st.floats(0.05, 1.0),
)
def test_tokens_are_those_of_a_full_sort(seed, peaks, top_p):
    """Some rows have their mass in a few tokens, others need more than the head."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(peaks), 4 * HEAD, generator=generator)
    logits[:, 7] += torch.tensor(peaks)
    draw = torch.rand(len(peaks), generator=generator, dtype=torch.float64)
    assert Sampling(1.0, top_p, ()).choose(logits, draw)[0].tolist() == by_full_sort(logits, draw, top_p)


def test_only_rows_that_need_it_are_sorted(monkeypatch):
    logits = torch.zeros(40, 4 * HEAD)
    logits[:, 7] = 30.0
    logits[3] = 0.0  # flat
    sorted_rows, sort = [], torch.Tensor.sort
    monkeypatch.setattr(
        torch.Tensor, "sort", lambda self, *a, **k: sorted_rows.append(len(self)) or sort(self, *a, **k)
    )
    Sampling(1.0, 0.99, ()).choose(logits, torch.rand(40, dtype=torch.float64))
    assert sorted_rows == [1]
