"""Per-token statistics against fp64 autograd and closed forms."""

import pytest
import torch
from ivgr.kernels import fused_logprob_kl, kl_estimate


def random_case(rows, vocabulary, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=generator) * 3
    return (
        logits,
        logits + torch.randn(rows, vocabulary, generator=generator),
        torch.randint(0, vocabulary, (rows,), generator=generator),
    )


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("vocabulary", [7, 1271])
def test_statistics_equal_fp64_distributions(temperature, vocabulary):
    logits, ref_logits, ids = random_case(41, vocabulary)
    got = fused_logprob_kl(
        logits, ids, ref_logits=ref_logits, temperature=temperature, kl="exact", entropy=True
    )
    policy = torch.distributions.Categorical(logits=logits.double() / temperature)
    reference = torch.distributions.Categorical(logits=ref_logits.double() / temperature)
    expected = {
        "logp": policy.log_prob(ids),
        "ref_logp": reference.log_prob(ids),
        "kl": torch.distributions.kl_divergence(policy, reference),
        "entropy": policy.entropy(),
    }
    for name, value in expected.items():
        assert getattr(got, name).dtype == torch.float32
        torch.testing.assert_close(getattr(got, name).double(), value, atol=6e-6, rtol=1e-5)


@pytest.mark.parametrize("kl", ["k1", "k2", "k3", "exact"])
def test_gradient_equals_the_closed_form(kl):
    logits, ref_logits, ids = random_case(5, 33)
    leaf = logits.clone().requires_grad_()
    got = fused_logprob_kl(leaf, ids, ref_logits=ref_logits, kl=kl)
    upstream_logp, upstream_kl = torch.linspace(-2, 2, 5), torch.linspace(1, -3, 5)
    (got.logp * upstream_logp + got.kl * upstream_kl).sum().backward()

    log_p, log_r = logits.double().log_softmax(-1), ref_logits.double().log_softmax(-1)
    onehot = torch.nn.functional.one_hot(ids, 33).double()
    d = (log_p - log_r).gather(1, ids[:, None])
    slope = {"k1": torch.ones_like(d), "k2": d, "k3": 1 - torch.exp(-d), "exact": torch.zeros_like(d)}[kl]
    weight = upstream_logp[:, None].double() + upstream_kl[:, None].double() * slope
    expected = weight * (onehot - log_p.exp())
    if kl == "exact":
        divergence = (log_p.exp() * (log_p - log_r)).sum(-1, keepdim=True)
        expected = expected + upstream_kl[:, None].double() * log_p.exp() * (log_p - log_r - divergence)
    torch.testing.assert_close(leaf.grad.double(), expected, atol=2e-6, rtol=1e-5)


def test_equal_policies_have_exactly_no_divergence():
    logits, _, ids = random_case(9, 50)
    for kl in ("k1", "k2", "k3", "exact"):
        assert torch.equal(fused_logprob_kl(logits, ids, ref_logits=logits, kl=kl).kl, torch.zeros(9))


def test_estimators_are_unbiased_or_positive():
    logits, ref_logits, _ = random_case(1, 40)
    p, r = logits.double().log_softmax(-1)[0], ref_logits.double().log_softmax(-1)[0]
    exact = (p.exp() * (p - r)).sum()
    for kind in ("k1", "k3"):
        torch.testing.assert_close((p.exp() * kl_estimate(p, r, kind)).sum(), exact)
    assert (kl_estimate(p, r, "k3") >= 0).all() and (kl_estimate(p, r, "k2") >= 0).all()


def test_misuse_is_named():
    logits, _, ids = random_case(2, 5)
    with pytest.raises(ValueError, match="ref_logits"):
        fused_logprob_kl(logits, ids, kl="exact")
    with pytest.raises(ValueError, match="k9"):
        fused_logprob_kl(logits, ids, ref_logp=torch.zeros(2), kl="k9")
