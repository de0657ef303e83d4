"""Operators under PyTorch's own checks and compiler, the choice of implementation, a peer."""

import sys

import pytest
import torch

import ivgr.kernels
from ivgr.kernels import fused_linear_logprob_kl, fused_logprob_kl
from ivgr.kernels.dispatch import row_kernels
from support.kernel_cases import DEVICE, assert_gradient, random_case, random_head

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def forced(monkeypatch):
    def force(choice):
        monkeypatch.setenv("IVGR_KERNELS", choice)

    return force


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("exact", [False, True])
def test_row_operators_pass_opcheck(forced, implementation, exact):
    forced(implementation)
    logits, ref_logits, ids = random_case(3, 40)
    ref_logits = ref_logits if exact else None
    leaf = logits.clone().requires_grad_()
    torch.library.opcheck(torch.ops.ivgr.row_statistics, (leaf, ids, ref_logits, 0.8, True, False))
    rows = torch.ops.ivgr.row_statistics(logits, ids, ref_logits, 0.8, True, False)
    arguments = (logits, ids, ref_logits, rows, torch.ones_like(rows), 0.8, True)
    torch.library.opcheck(torch.ops.ivgr.row_gradient, arguments)
    torch.library.opcheck(torch.ops.ivgr.row_gradient_, arguments)


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("exact", [False, True])
def test_linear_operators_pass_opcheck(forced, implementation, exact):
    forced(implementation)
    hidden, weight, ids, reference = random_head(5, 4, 30)
    reference = tuple(reference.values()) if exact else (None, None)
    bias = torch.zeros(30, device=DEVICE)
    settings = (ids, 0.8, True, torch.float32, 2)
    inputs = [tensor.clone().requires_grad_() for tensor in (hidden, weight, bias)]
    torch.library.opcheck(torch.ops.ivgr.linear_statistics, (*inputs, *reference, None, *settings))
    operands = (hidden, weight, bias, *reference, None, *settings)
    rows = torch.ops.ivgr.linear_statistics(*operands)
    arguments = (*operands, rows, torch.ones_like(rows), [True, False, True])
    torch.library.opcheck(torch.ops.ivgr.linear_gradient, arguments)


@pytest.mark.parametrize("kl", ["k3", "exact"])
def test_compiled_equals_eager(kl):
    """Traced in one graph, down to the gradients; the code generator is not what is tested."""
    hidden, weight, ids, reference = random_head(5, 4, 30)
    ref_logits = reference["ref_hidden"] @ reference["ref_weight"].T

    def both_forms(hidden, weight):
        linear = fused_linear_logprob_kl(hidden, weight, ids, **reference, kl=kl, entropy=True)
        whole = fused_logprob_kl(hidden @ weight.T, ids, ref_logits=ref_logits, kl=kl, entropy=True)
        return torch.stack([*linear[:4], *whole[:4]])

    results = []
    for function in (both_forms, torch.compile(both_forms, backend="aot_eager", fullgraph=True)):
        inputs = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
        fields = function(*inputs)
        fields[[0, 2, 3, 4, 6, 7]].square().sum().backward()
        results.append([fields.detach(), *(leaf.grad for leaf in inputs)])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled, rtol=1e-6, atol=1e-6)


def test_a_known_loss_inside_a_compiled_function():
    hidden, weight, ids, reference = random_head(5, 4, 30)
    options = reference | {"token_loss": lambda logp, *_: -logp}

    def loss(hidden, weight):
        return fused_linear_logprob_kl(hidden, weight, ids, **options).loss * 2

    gradients = []
    for function in (loss, torch.compile(loss, backend="aot_eager")):
        leaf = hidden.clone().requires_grad_()
        function(leaf, weight).backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


def test_the_device_decides_unless_the_environment_does(monkeypatch, forced):
    monkeypatch.delenv("IVGR_KERNELS", raising=False)
    assert row_kernels(CPU).__name__ == "ivgr.kernels.rows_torch"
    assert row_kernels(CUDA).__name__ == "ivgr.kernels.rows_triton"
    forced("torch")
    assert row_kernels(CUDA).__name__ == "ivgr.kernels.rows_torch"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    forced("triton")
    assert row_kernels(CPU).__name__ == "ivgr.kernels.rows_triton"


def test_what_cannot_be_had_is_refused(monkeypatch, forced):
    forced("cuda")
    with pytest.raises(ValueError, match="IVGR_KERNELS is 'cuda', must be torch or triton"):
        row_kernels(CPU)
    forced("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        row_kernels(CPU)


def test_without_triton_cuda_is_refused_and_the_cpu_works(monkeypatch):
    monkeypatch.delenv("IVGR_KERNELS", raising=False)
    monkeypatch.delattr(ivgr.kernels, "rows_triton", raising=False)
    monkeypatch.setitem(sys.modules, "ivgr.kernels.rows_triton", None)
    assert row_kernels(CPU).__name__ == "ivgr.kernels.rows_torch"
    with pytest.raises(ImportError):
        row_kernels(CUDA)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_liger_kernel_gives_the_same(forced, temperature):
    """Log-probs, k3 and their gradient in a GRPO loss; its kernels interpret as ours do."""
    peer = pytest.importorskip("liger_kernel.transformers.grpo_loss")
    forced("triton")
    logits, ref_logits, ids = random_case(6, 2500)
    theirs, ours = (logits[:, None].expand(-1, 2, -1).contiguous().requires_grad_() for _ in range(2))
    ref_logp = peer.fused_selective_log_softmax(
        ref_logits[:, None].repeat(1, 2, 1), ids[:, None], temperature
    )
    advantage = torch.linspace(-1, 1, 6, device=DEVICE)
    loss, kl, _ = peer.triton_grpo_loss(
        theirs, None, ref_logp, ids[:, None], advantage, temperature=temperature, beta=0.5, inplace=False
    )
    got = fused_logprob_kl(ours[:, 0], ids, ref_logits=ref_logits, temperature=temperature)
    torch.testing.assert_close(got.ref_logp, ref_logp[:, 0], atol=6e-6, rtol=2e-6)
    torch.testing.assert_close(got.kl, kl[:, 0], atol=6e-6, rtol=1e-5)
    loss.sum().backward()
    (0.5 * got.kl - advantage * got.logp).sum().backward()
    assert_gradient(theirs.grad[:, 0], ours.grad[:, 0].double(), 1e-5)
