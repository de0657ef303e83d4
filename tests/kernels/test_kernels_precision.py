"""The linear form in half precision."""

import pytest
import torch

from ivgr.kernels import fused_linear_logprob_kl
from support.kernel_cases import assert_gradient, oracle, random_head


@pytest.mark.parametrize("kl", ["k3", "exact"])
@pytest.mark.parametrize("known", [False, True], ids=["recomputed", "known loss"])
def test_the_gradient_of_the_head_is_summed_in_fp32(kl, known):
    """One token 400 times over, a chunk each: a bf16 sum would stand still at 256."""

    def gradient(count):
        hidden, weight, ref_hidden, ref_weight = (tensor.bfloat16() for tensor in half)
        hidden, ref_hidden, ids = (x.expand(count, *x.shape[1:]) for x in (hidden, ref_hidden, case[2]))
        leaf = weight.clone().requires_grad_()
        loss = (lambda logp, ref_logp, kl, entropy, rows: logp + kl) if known else None
        got = fused_linear_logprob_kl(
            hidden, leaf, ids, ref_hidden=ref_hidden, ref_weight=ref_weight, kl=kl, chunk_bytes=1,
            token_loss=loss,
        )  # fmt: skip
        (got.loss if known else (got.logp + got.kl).sum()).backward()
        assert got.logp.dtype == torch.float32 and leaf.grad.dtype == torch.bfloat16
        return leaf.grad.double()

    case = random_head(1, 8, 50)
    half = (*case[:2], *case[3].values())
    assert_gradient(gradient(400), 400 * gradient(1), 2**-7)


def test_exact_kl_of_close_policies_in_half_precision():
    hidden, weight, ids, _ = random_head(9, 64, 1271)
    hidden, weight = hidden.bfloat16(), weight.bfloat16()
    near = (hidden.float() * 1.01).bfloat16()
    got = fused_linear_logprob_kl(hidden, weight, ids, ref_hidden=near, ref_weight=weight, kl="exact")
    logits, ref_logits = (x.double() @ weight.double().T for x in (hidden, near))
    torch.testing.assert_close(got.kl.double(), oracle(logits, ref_logits, ids)["kl"], atol=1e-6, rtol=1e-3)
