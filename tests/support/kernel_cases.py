"""Random cases for the kernels, and what they should give, by autograd in fp64."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = ("k1", "k2", "k3", "exact")
FIELDS = ("logp", "ref_logp", "kl", "entropy")


def random_case(rows, vocabulary, seed=0, spread=3.0):
    """Policy logits, reference logits near them, sampled tokens."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=generator) * spread
    near = logits + torch.randn(rows, vocabulary, generator=generator)
    ids = torch.randint(0, vocabulary, (rows,), generator=generator)
    return logits.to(DEVICE), near.to(DEVICE), ids.to(DEVICE)


def random_head(rows, width, vocabulary, seed=0):
    """Hidden states, head, sampled tokens; and `ref_hidden` and `ref_weight` by name."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator)
    weight = torch.randn(vocabulary, width, generator=generator) * 3 / width**0.5
    ref_hidden = hidden + torch.randn(rows, width, generator=generator) * 0.3
    ref_weight = weight + torch.randn(vocabulary, width, generator=generator) * 0.3 / width**0.5
    ids = torch.randint(0, vocabulary, (rows,), generator=generator)
    reference = {"ref_hidden": ref_hidden.to(DEVICE), "ref_weight": ref_weight.to(DEVICE)}
    return hidden.to(DEVICE), weight.to(DEVICE), ids.to(DEVICE), reference


def reference_logits(reference):
    """In fp64, of what `random_head` gives by name."""
    return reference["ref_hidden"].double() @ reference["ref_weight"].double().T


def oracle(logits, ref_logits, ids, temperature=1.0, kl="exact"):
    """The four fields from fp64 distributions; differentiable in `logits`."""
    policy = torch.distributions.Categorical(logits=logits.double() / temperature)
    reference = torch.distributions.Categorical(logits=ref_logits.double() / temperature)
    logp, ref_logp = policy.log_prob(ids), reference.log_prob(ids)
    ratio = ref_logp - logp
    divergence = {
        "k1": lambda: -ratio,
        "k2": lambda: ratio**2 / 2,
        "k3": lambda: ratio.exp() - 1 - ratio,
        "exact": lambda: torch.distributions.kl_divergence(policy, reference),
    }[kl]()
    return dict(zip(FIELDS, (logp, ref_logp, divergence, policy.entropy()), strict=True))


def upstream(count, seed=1):
    """Upstream gradients of log-prob, KL and entropy, of either sign."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, count, generator=generator).to(DEVICE)


def weighted(logp, kl, entropy, weights):
    """A scalar of which `weights` (3, N) are the gradients."""
    return (torch.stack([logp, kl, entropy]) * weights.to(logp.dtype)).sum()


def assert_fields(got, expected, rtol=2e-6):
    for name, value in expected.items():
        field = getattr(got, name)
        assert field.dtype == torch.float32
        torch.testing.assert_close(field.double(), value.detach(), atol=6e-6, rtol=rtol)


def assert_gradient(got, expected, tolerance=2e-6):
    """Largest error, measured by the largest entry."""
    assert (got.double() - expected).abs().max() <= tolerance * expected.abs().max()
