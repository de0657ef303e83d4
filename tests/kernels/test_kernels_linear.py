"""The linear form against fp64 autograd through whole logits, in PyTorch and in Triton."""

import pytest
import torch

from ivgr.kernels import fused_linear_logprob_kl, fused_logprob_kl
from support.kernel_cases import (
    DEVICE,
    FIELDS,
    KINDS,
    assert_fields,
    assert_gradient,
    oracle,
    random_head,
    reference_logits,
    upstream,
    weighted,
)

FEW = 4 * 1271 * 4  # bytes of four tokens' logits


pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


@pytest.fixture(autouse=True, params=["torch", "triton"])
def implementation(request, monkeypatch):
    monkeypatch.setenv("IVGR_KERNELS", request.param)


def leaves(*tensors, dtype=None):
    return [tensor.detach().clone().to(dtype).requires_grad_() for tensor in tensors]


def expected_gradients(case, weights, temperature=1.0, kl="exact", bias=None):
    """The fp64 fields and the gradients of the `weights` (3, N) of log-prob, KL, entropy."""
    hidden, weight, ids, reference = case
    inputs = leaves(hidden, weight, *([] if bias is None else [bias]), dtype=torch.float64)
    logits = inputs[0] @ inputs[1].T + (inputs[2] if bias is not None else 0)
    fields = oracle(logits, reference_logits(reference), ids, temperature, kl)
    total = weighted(fields["logp"], fields["kl"], fields["entropy"], weights)
    return fields, torch.autograd.grad(total, inputs)


@pytest.mark.parametrize("kl", KINDS)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_recomputing_equals_whole_logits(kl, temperature):
    case, weights = random_head(9, 16, 1271), upstream(9)
    hidden, weight = leaves(*case[:2])
    got = fused_linear_logprob_kl(
        hidden, weight, case[2], **case[3], temperature=temperature, kl=kl, entropy=True, chunk_bytes=FEW
    )
    weighted(got.logp, got.kl, got.entropy, weights).backward()
    fields, gradients = expected_gradients(case, weights, temperature, kl)
    assert_fields(got, fields, rtol=1e-5)
    assert_gradient(hidden.grad, gradients[0])
    assert_gradient(weight.grad, gradients[1])


@pytest.mark.parametrize("kl", KINDS)
def test_a_loss_known_in_the_forward_pass_gives_the_same_gradients(kl):
    case, weights = random_head(9, 16, 1271), upstream(9)
    hidden, weight = leaves(*case[:2])
    seen = []

    def token_loss(logp, ref_logp, kl, entropy, rows):
        seen.append(rows)
        return (torch.stack([logp, kl, entropy]) * weights[:, rows]).sum(0)

    got = fused_linear_logprob_kl(
        hidden, weight, case[2], **case[3], kl=kl, entropy=True, chunk_bytes=FEW, token_loss=token_loss
    )
    assert [len(range(9)[rows]) for rows in seen] == [4, 4, 1]
    assert not any(getattr(got, name).requires_grad for name in FIELDS)
    (got.loss * -3.5).backward()
    fields, gradients = expected_gradients(case, weights, kl=kl)
    assert_fields(got, fields, rtol=1e-5)
    total = weighted(fields["logp"], fields["kl"], fields["entropy"], weights)
    torch.testing.assert_close(got.loss.double(), total.detach(), rtol=1e-5, atol=0)
    assert_gradient(hidden.grad, -3.5 * gradients[0])
    assert_gradient(weight.grad, -3.5 * gradients[1])


def weighted_loss(weights):
    return lambda logp, ref_logp, kl, entropy, rows: logp * weights[0, rows] + kl * weights[1, rows]


@pytest.mark.parametrize("known", [False, True], ids=["recomputed", "known loss"])
@pytest.mark.parametrize("frozen", [None, "hidden", "weight"])
def test_what_is_frozen_gets_no_gradient(known, frozen):
    case, weights = random_head(9, 8, 50), upstream(9)
    weights[2] = 0
    bias = torch.linspace(-1, 1, 50, device=DEVICE)
    inputs = dict(zip(("hidden", "weight", "bias"), leaves(*case[:2], bias), strict=True))
    if frozen:
        inputs[frozen].requires_grad_(False)
    got = fused_linear_logprob_kl(
        inputs["hidden"], inputs["weight"], case[2], **case[3], bias=inputs["bias"], kl="exact",
        token_loss=weighted_loss(weights) if known else None, chunk_bytes=800,
    )  # fmt: skip
    (got.loss if known else (got.logp * weights[0] + got.kl * weights[1]).sum()).backward()
    _, gradients = expected_gradients(case, weights, bias=bias)
    for (name, leaf), gradient in zip(inputs.items(), gradients, strict=True):
        if name == frozen:
            assert leaf.grad is None
        else:
            assert_gradient(leaf.grad, gradient)


def test_no_gradients_are_made_where_none_are_wanted():
    case, weights = random_head(9, 8, 50), upstream(9)
    with torch.no_grad():
        got = fused_linear_logprob_kl(*case[:3], **case[3], token_loss=weighted_loss(weights))
    assert not got.loss.requires_grad
    torch.testing.assert_close(got.loss, (got.logp * weights[0] + got.kl * weights[1]).sum())


def test_gradients_of_a_known_loss_serve_once():
    hidden, weight, ids, reference = random_head(9, 8, 50)
    got = fused_linear_logprob_kl(
        hidden.requires_grad_(), weight, ids, **reference, token_loss=weighted_loss(upstream(9))
    )
    got.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up"):
        got.loss.backward()


def test_tied_weights_add_into_one_gradient():
    hidden, weight, ids, reference = random_head(9, 8, 50)
    tied, words = weight.clone().requires_grad_(), torch.arange(9, device=DEVICE)
    options = reference | {"token_loss": weighted_loss(upstream(9))}
    got = fused_linear_logprob_kl(tied[words] + hidden, tied, ids, **options)
    got.loss.backward()
    exact = weight.double().requires_grad_()
    logits = (exact[words] + hidden.double()) @ exact.T
    fields = oracle(logits, reference_logits(reference), ids, kl="k3")
    weighted(fields["logp"], fields["kl"], 0 * fields["logp"], upstream(9)).backward()
    assert_gradient(tied.grad, exact.grad)


@pytest.mark.parametrize("kl", KINDS)
def test_shared_head_and_equal_states_have_exactly_no_divergence(kl):
    hidden, weight, ids, _ = random_head(9, 16, 1271)
    alone = fused_linear_logprob_kl(hidden, weight, ids, kl=None, chunk_bytes=FEW)
    got = fused_linear_logprob_kl(
        hidden, weight, ids, ref_hidden=hidden.clone(), ref_weight=weight, kl=kl, chunk_bytes=FEW
    )
    assert torch.equal(got.kl, torch.zeros(9, device=DEVICE))
    assert torch.equal(got.logp, alone.logp) and torch.equal(got.ref_logp, alone.logp)
    assert alone.kl is None and alone.ref_logp is None


def test_padding_of_the_vocabulary_counts_for_nothing():
    hidden, weight, ids, reference = random_head(9, 8, 64)
    ids = ids % 50
    (leaf,) = leaves(weight)
    got = fused_linear_logprob_kl(hidden, leaf, ids, **reference, kl="exact", vocabulary=50)
    got.kl.sum().backward()
    reference["ref_weight"] = reference["ref_weight"][:50]
    short = fused_linear_logprob_kl(hidden, weight[:50], ids, **reference, kl="exact")
    assert torch.equal(got.kl, short.kl) and (leaf.grad[50:] == 0).all() and leaf.grad[:50].any()


def test_a_head_may_be_a_module():
    hidden, weight, ids, reference = random_head(9, 8, 50)
    ref_hidden = reference["ref_hidden"]
    head = torch.nn.Linear(8, 50).to(DEVICE)
    with torch.no_grad():
        head.weight.copy_(weight)
    got = fused_linear_logprob_kl(
        hidden, head, ids, ref_hidden=ref_hidden, ref_weight=head, kl="exact", entropy=True
    )
    whole = fused_logprob_kl(head(hidden), ids, ref_logits=head(ref_hidden), kl="exact", entropy=True)
    assert_fields(got, {name: getattr(whole, name).double() for name in FIELDS})
    got.kl.sum().backward()
    assert head.weight.grad.any() and head.bias.grad.any()


def test_an_adapter_on_the_head_is_refused():
    class Adapted(torch.nn.Linear):
        """What a LoRA layer looks like: a `weight` of its own, and more to it."""

    hidden, _, ids, reference = random_head(9, 8, 50)
    with pytest.raises(TypeError, match="Adapted.*bypass an adapter"):
        fused_linear_logprob_kl(hidden, Adapted(8, 50), ids, **reference)


def test_exact_kl_needs_the_reference():
    hidden, weight, ids, _ = random_head(9, 8, 50)
    with pytest.raises(ValueError, match="ref_hidden and ref_weight"):
        fused_linear_logprob_kl(hidden, weight, ids, kl="exact")


@pytest.mark.parametrize("given", ["ref_hidden", "ref_weight"])
def test_half_a_reference_is_refused(given):
    hidden, weight, ids, reference = random_head(9, 8, 50)
    with pytest.raises(ValueError, match="go together"):
        fused_linear_logprob_kl(hidden, weight, ids, **{given: reference[given]})
