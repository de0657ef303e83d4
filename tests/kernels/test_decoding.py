"""What stands between the products of a decoder layer against the stock modules of transformers."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import silu
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm, apply_rotary_pos_emb

import support.interpreter  # noqa: F401  before triton
from ivgr.kernels.decoding import add_norm, gate_product, rotate

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = st.sampled_from([torch.float32, torch.float16])
NEAR = {torch.float32: 1e-6, torch.float16: 2e-3}


def draw(seed: int, dtype: torch.dtype, *shapes) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator).to(dtype).to(DEVICE) for shape in shapes]


def norm_of(weight: torch.Tensor) -> Qwen3VLTextRMSNorm:
    norm = Qwen3VLTextRMSNorm(len(weight), eps=1e-6).to(DEVICE)
    norm.weight = torch.nn.Parameter(weight, requires_grad=False)
    return norm


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 3), columns=st.sampled_from([1, 24, 128]), adds=st.booleans(), dtype=DTYPES,
    seed=st.integers(0, 99),
)  # fmt: skip
def test_sum_and_norm(rows, columns, adds, dtype, seed):
    hidden, delta, weight = draw(seed, dtype, (rows, columns), (rows, columns), (columns,))
    total, out = add_norm(hidden, delta if adds else None, weight, 1e-6)
    expected = hidden + delta if adds else hidden
    assert torch.equal(total, expected)
    torch.testing.assert_close(out, norm_of(weight)(expected), rtol=NEAR[dtype], atol=NEAR[dtype])


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 3), count=st.integers(1, 3), size=st.sampled_from([8, 24, 32]), norms=st.booleans(),
    dtype=DTYPES, seed=st.integers(0, 99),
)  # fmt: skip
def test_rotary_positions(rows, count, size, norms, dtype, seed):
    heads, weight, angles = draw(seed, dtype, (rows, count, size), (size,), (2, rows, size))
    apart = torch.cat([heads, torch.full_like(heads, torch.nan)], 1)[:, :count]  # as a part of wider rows
    out = rotate(apart, *angles, weight if norms else None, 1e-6)
    normed = norm_of(weight)(heads) if norms else heads
    expected, _ = apply_rotary_pos_emb(normed, normed, *angles)
    torch.testing.assert_close(out, expected, rtol=2 * NEAR[dtype], atol=2 * NEAR[dtype])


@pytest.mark.parametrize("count", [1, 1024, 1500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gate(count, dtype):
    gate, up = draw(count, dtype, (3, count), (3, count))
    apart = torch.cat([gate, up, torch.full_like(gate, torch.nan)], 1).split(count, 1)
    expected = silu(gate) * up
    torch.testing.assert_close(gate_product(*apart[:2]), expected, rtol=NEAR[dtype], atol=NEAR[dtype])


COMPILE = """
import ivgr.kernels.decoding as kernels
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

for kernel, fixed in (
    (kernels._add_norm, {"ADDS": True, "BLOCK": 4096}),
    (kernels._rotate, {"NORMS": True, "SIZE": 128, "HALF": 64}),
    (kernels._gate_product, {"BLOCK": 1024}),
):
    counts = ("columns", "count", "stride", "gate_stride", "up_stride")
    kinds = dict.fromkeys(counts, "i32") | {"epsilon": "fp32"}
    names = [parameter.name for parameter in kernel.params]
    types = {name: "constexpr" if name in fixed else kinds.get(name, "*bf16") for name in names}
    triton.compile(ASTSource(kernel, types, fixed), target=GPUTarget("cuda", 90, 32))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")
def test_the_kernels_compile_for_a_data_centre_gpu(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
