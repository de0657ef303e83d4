"""What decoding computes with: scores and softmax in float32, sums and cuts of a distribution in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ivgr.rollout import sampling
from ivgr.rollout.attention import attend
from ivgr.rollout.sampling import HEAD, Sampling
from support.full_sort import by_full_sort


@pytest.mark.parametrize("bias", [0.0, 10.0, 30.0])
def test_bfloat16_attention_is_exact_but_for_its_last_rounding(bias):
    """Keys have a large bias in common, as Qwen2.5-7B's do: scores up to 200, of which bfloat16
    keeps whole numbers only."""
    generator = torch.Generator().manual_seed(0)
    query, shift = torch.randn(2, 1, 1, 7, 128, generator=generator)
    keys, values = torch.randn(2, 1, 1, 500, 128, generator=generator)
    query, keys, values = (part.bfloat16() for part in (query, keys + bias * shift[:, :, :1], values))
    scaling = 128**-0.5
    out, lse = attend(query, keys, values, torch.zeros(500), scaling)
    scores = query.double() @ keys.double().mT * scaling
    exact = scores.softmax(-1) @ values.double()
    assert (out - exact).norm() / exact.norm() < 5e-3
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1, keepdim=True), rtol=1e-5, atol=1e-4)


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
    chosen = Sampling(1.0, top_p, ()).choose(logits, draw)[0].tolist()
    assert chosen == by_full_sort(logits.softmax(-1), draw, top_p)[0]


@pytest.mark.parametrize("top_p", [0.5, 0.99, 1.0])
def test_a_gpus_kernel_chooses_what_a_sort_chooses(monkeypatch, top_p):
    """Logits in bfloat16, as models make them, are often equal beyond the head."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6 * HEAD, generator=generator).bfloat16()
    logits[1, 7], logits[2] = 30.0, torch.nan
    draw = torch.rand(4, generator=generator, dtype=torch.float64)
    found = []
    for kernels in ("torch", "triton"):
        monkeypatch.setenv("IVGR_KERNELS", kernels)
        found.append(Sampling(0.9, top_p, (3,)).choose(logits, draw))
    for own, expected in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, rtol=0, atol=0, equal_nan=True)


def test_on_a_gpu_the_host_reads_nothing(monkeypatch):
    """PyTorch's meta device, from which nothing can be read, stands in for a GPU."""
    monkeypatch.setattr(sampling, "uses_triton", lambda device: device.type == "meta")
    asked = []
    monkeypatch.setattr("ivgr.kernels.nucleus_triton.redraw", lambda *given: asked.append(given))
    logits, draw = torch.zeros(5, 4 * HEAD, device="meta"), torch.zeros(5, device="meta").double()
    token, logp, sampling_logp = Sampling(1.0, 0.99, (1, 2)).choose(logits, draw)
    assert token.shape == logp.shape == sampling_logp.shape == (5,)
    assert len(asked) == 1


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
