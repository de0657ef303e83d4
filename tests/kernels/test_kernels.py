"""Per-token statistics from logits against fp64 autograd, in PyTorch and in Triton (without a
GPU in its interpreter)."""

import pytest
import torch

from ivgr.kernels import fused_logprob_kl, kl_estimate
from support.kernel_cases import (
    DEVICE,
    FIELDS,
    KINDS,
    assert_fields,
    assert_gradient,
    oracle,
    random_case,
    upstream,
    weighted,
)

# Where a value is guarded by a mask, the interpreter computes it all the same.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


@pytest.fixture(autouse=True, params=["torch", "triton"])
def implementation(request, monkeypatch):
    monkeypatch.setenv("IVGR_KERNELS", request.param)
    return request.param


def check(logits, ref_logits, ids, temperature=1.0, kl="exact", tolerance=2e-6, **options):
    """Values and gradients of one call against the oracle's."""
    leaf, weights = logits.detach().requires_grad_(), upstream(len(ids))
    got = fused_logprob_kl(
        leaf, ids, ref_logits=ref_logits, temperature=temperature, kl=kl, entropy=True, **options
    )
    exact = logits.detach().double().requires_grad_()
    expected = oracle(exact, ref_logits, ids, temperature, kl)
    assert_fields(got, expected)
    weighted(got.logp, got.kl, got.entropy, weights).backward()
    weighted(expected["logp"], expected["kl"], expected["entropy"], weights).backward()
    assert_gradient(leaf.grad, exact.grad, tolerance)


@pytest.mark.parametrize("kl", KINDS)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_every_estimate_at_every_temperature(kl, temperature):
    check(*random_case(9, 1271), temperature, kl)


@pytest.mark.parametrize("shape", [(1, 7), (1, 1271), (41, 1271), (5, 4096), (7, 4097), (2, 152_064)])
def test_odd_shapes(shape):
    check(*random_case(*shape))


@pytest.mark.parametrize("spread", [0.0, 40.0])
def test_flat_and_peaked_rows(spread):
    check(*random_case(9, 5000, spread=spread))


def test_an_offset_of_the_logits_costs_no_digits():
    logits, ref_logits, ids = random_case(9, 5000)
    rounded = ((logits * 256).round() / 256, (ref_logits * 256).round() / 256)
    plain = fused_logprob_kl(rounded[0], ids, ref_logits=rounded[1], kl="exact", entropy=True)
    moved = fused_logprob_kl(rounded[0] + 1024, ids, ref_logits=rounded[1] - 512, kl="exact", entropy=True)
    for name in FIELDS:
        assert torch.equal(getattr(plain, name), getattr(moved, name))


def test_words_of_no_probability():
    logits, ref_logits, ids = random_case(6, 9000)
    banned = torch.arange(9000, device=DEVICE) < 4200  # the whole first block, and more
    logits[:, banned] = ref_logits[:, banned] = -torch.inf
    ids = ids.clamp(min=4200)
    leaf = logits.clone().requires_grad_()
    got = fused_logprob_kl(leaf, ids, ref_logits=ref_logits, kl="exact", entropy=True)
    weighted(got.logp, got.kl, got.entropy, upstream(6)).backward()
    exact = logits[:, ~banned].double().requires_grad_()
    expected = oracle(exact, ref_logits[:, ~banned], ids - 4200)
    assert_fields(got, expected)
    weighted(expected["logp"], expected["kl"], expected["entropy"], upstream(6)).backward()
    assert (leaf.grad[:, banned] == 0).all()
    assert_gradient(leaf.grad[:, ~banned], exact.grad)


def test_a_word_that_only_the_reference_excludes_is_infinitely_far():
    logits, ref_logits, ids = random_case(2, 50)
    ref_logits[:, 7] = -torch.inf
    got = fused_logprob_kl(logits, ids.clamp(min=8), ref_logits=ref_logits, kl="exact")
    assert torch.isposinf(got.kl).all() and got.logp.isfinite().all()


@pytest.mark.parametrize("layout", ["transposed", "sliced", "every other"])
def test_strided_logits(layout):
    logits, ref_logits, ids = random_case(9, 4100)

    def lay(tensor):
        if layout == "transposed":
            return tensor.T.contiguous().T
        wide = torch.full((9, 8400), torch.nan, device=DEVICE)
        view = wide[:, 3:4103] if layout == "sliced" else wide[:, 0:8200:2]
        return view.copy_(tensor)

    check(lay(logits), lay(ref_logits), ids)


def test_masked_rows_have_zeros_and_leave_no_gradient():
    logits, ref_logits, ids = random_case(8, 300)
    masked = torch.tensor([0, 3, 7], device=DEVICE)
    expected = fused_logprob_kl(logits, ids, ref_logits=ref_logits, kl="exact", entropy=True)
    ids, leaf = ids.index_fill(0, masked, -100), logits.clone().requires_grad_()
    got = fused_logprob_kl(leaf, ids, ref_logits=ref_logits, kl="exact", entropy=True)
    weighted(got.logp, got.kl, got.entropy, upstream(8)).backward()
    for name in FIELDS:
        assert torch.equal(getattr(got, name), getattr(expected, name).index_fill(0, masked, 0.0))
    assert (leaf.grad.abs().sum(-1) == 0).nonzero()[:, 0].tolist() == masked.tolist()


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_equal_policies_have_exactly_no_divergence(temperature):
    logits, _, ids = random_case(9, 5000)
    alone = fused_logprob_kl(logits, ids, temperature=temperature, kl=None).logp
    for kl in KINDS:
        got = fused_logprob_kl(
            logits, ids, ref_logits=logits.clone(), temperature=temperature, kl=kl, entropy=True
        )
        assert torch.equal(got.kl, torch.zeros_like(got.kl))
        assert torch.equal(got.logp, alone) and torch.equal(got.ref_logp, alone)  # ratio 1


def test_the_gradient_may_take_the_place_of_the_logits():
    logits, ref_logits, ids = random_case(9, 4100)
    apart, shared = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    for leaf, in_place in ((apart, False), (shared, True)):
        made = leaf * 1  # a leaf must not change
        got = fused_logprob_kl(made, ids, ref_logits=ref_logits, kl="exact", in_place=in_place)
        got.kl.sum().backward()
    assert torch.equal(apart.grad, shared.grad)
    assert torch.equal(made, shared.grad)


def test_half_precision_is_reduced_in_fp32():
    logits, ref_logits, ids = (tensor.bfloat16() if tensor.is_floating_point() else tensor
                               for tensor in random_case(9, 4100))  # fmt: skip
    check(logits, ref_logits, ids, tolerance=2**-7)  # the interpreter truncates when it stores bf16


def test_offsets_beyond_32_bits():
    """Rows 2³⁰ elements apart in memory of which only three rows are ever touched."""
    logits, ref_logits, ids = random_case(3, 500)
    far = torch.empty(2**31 + 500, dtype=torch.bfloat16, device=DEVICE).as_strided((3, 500), (2**30, 1))
    far.copy_(logits)
    near = logits.bfloat16()
    got, expected = (
        fused_logprob_kl(x, ids, ref_logits=ref_logits, kl="exact", entropy=True) for x in (far, near)
    )
    slack = 1e-5 if DEVICE == "cuda" else 0  # there other strides may mean another order of sums
    for name in FIELDS:
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), atol=slack, rtol=slack)
    leaf = far.requires_grad_()
    fused_logprob_kl(leaf, ids, kl=None).logp.sum().backward()
    assert_gradient(leaf.grad, torch.nn.functional.one_hot(ids, 500) - near.double().softmax(-1), 2**-7)


def test_means_over_each_stream():
    logits, ref_logits, ids = random_case(7, 60)
    ids[4] = -100
    stream = torch.tensor([0, 1, 1, -1, 0, 0, 1], device=DEVICE)
    got = fused_logprob_kl(logits, ids, ref_logits=ref_logits, stream=stream, streams=3, entropy=True)
    for name in FIELDS:
        values = getattr(got, name)
        expected = [values[[0, 5]].mean(), values[[1, 2, 6]].mean(), torch.zeros(()).to(DEVICE)]
        torch.testing.assert_close(getattr(got.means, name), torch.stack(expected))


def test_the_reference_may_come_as_log_probs():
    logits, ref_logits, ids = random_case(6, 90)
    full = fused_logprob_kl(logits, ids, ref_logits=ref_logits)
    short = fused_logprob_kl(logits, ids, ref_logp=full.ref_logp)
    assert torch.equal(full.kl, short.kl) and short.entropy is None and short.means is None


def test_no_rows_at_all():
    empty = torch.empty(0, 50, device=DEVICE)
    got = fused_logprob_kl(empty, torch.empty(0, dtype=torch.long, device=DEVICE), ref_logits=empty)
    assert got.logp.shape == got.kl.shape == (0,)


def test_estimators_are_unbiased_or_positive():
    logits, ref_logits, _ = random_case(1, 40)
    p, r = logits.double().log_softmax(-1)[0], ref_logits.double().log_softmax(-1)[0]
    exact = (p.exp() * (p - r)).sum()
    for kind in ("k1", "k3"):
        torch.testing.assert_close((p.exp() * kl_estimate(p, r, kind)).sum(), exact)
    assert (kl_estimate(p, r, "k3") >= 0).all() and (kl_estimate(p, r, "k2") >= 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"kl": "exact"}, "ref_logits"), ({"kl": "k9"}, "k9"), ({"temperature": 0.0}, "positive")],
)
def test_misuse_is_named(options, message):
    logits, _, ids = random_case(2, 5)
    with pytest.raises(ValueError, match=message):
        fused_logprob_kl(logits, ids, **options)
