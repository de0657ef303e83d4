"""Attention over pages against attention over everything at once, in fp64."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import support.interpreter  # noqa: F401  before triton
from ivgr.kernels.paged_attention import PAGE, attend_pages

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def draw_case(lengths, heads, group, size, dtype, seed, prefix_tokens=9):
    """Queries, prefixes, branches of `lengths` tokens (the last is new), and pools in which the others lie in
    pages of any order."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype).to(DEVICE)

    branches, most = len(lengths), -(-max(lengths) // PAGE)
    query, prefix = draw(branches, heads, group, size), draw(2, branches, heads, prefix_tokens, size)
    own = draw(2, branches, heads, max(lengths), size)
    order = torch.randperm(branches * most, generator=generator) + 1
    table = order.view(branches, most).int().to(DEVICE)
    pages = torch.full((2, branches * most + 1, heads, PAGE, size), torch.nan, dtype=dtype, device=DEVICE)
    for branch, length in enumerate(lengths):
        for token in range(length - 1):
            pages[:, table[branch, token // PAGE], :, token % PAGE] = own[:, branch, :, token]
    return query, prefix, own, table, (pages[0], pages[1])


def whole(query, keys, values, scaling):
    """Attention (H, G, D) and log-sum-exp (H, G, 1) of one branch, in fp64."""
    scores = query.double() @ keys.double().mT * scaling
    return scores.softmax(-1) @ values.double(), scores.logsumexp(-1, keepdim=True)


def check(lengths, heads, group, size, dtype, seed, tolerance):
    query, prefix, own, table, pages = draw_case(lengths, heads, group, size, dtype, seed)
    scaling, rows = size**-0.5, range(len(lengths))
    before = [whole(query[row], *prefix[:, row], scaling) for row in rows]
    position = torch.tensor(lengths, device=DEVICE) - 1
    out = attend_pages(
        query,
        *(torch.stack([part[row, :, lengths[row] - 1] for row in rows]) for part in own),
        pages,
        table,
        position,
        (torch.stack([out for out, _ in before]).float(), torch.stack([lse for _, lse in before]).float()),
        scaling,
    )
    for row, length in enumerate(lengths):
        both = torch.cat([prefix[:, row], own[:, row, :, :length]], -2)
        expected, _ = whole(query[row], *both, scaling)
        torch.testing.assert_close(out[row].double(), expected, rtol=0, atol=tolerance)
        for part, mine in zip(pages, own, strict=True):  # the new token lies in its place
            stored = part[table[row, (length - 1) // PAGE], :, (length - 1) % PAGE]
            assert torch.equal(stored, mine[row, :, length - 1])


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 2 * PAGE + 3), min_size=1, max_size=3),
    heads=st.integers(1, 2),
    group=st.sampled_from([1, 4, 7]),
    size=st.sampled_from([16, 24, 32]),
    seed=st.integers(0, 1000),
)
def test_pages_change_nothing(lengths, heads, group, size, seed):
    check(lengths, heads, group, size, torch.float32, seed, tolerance=1e-5)


@pytest.mark.parametrize("length", [1, 2, PAGE, PAGE + 1, PAGE + 2, 3 * PAGE])
def test_borders_of_pages(length):
    check([length, 1], 2, 7, 32, torch.float32, seed=length, tolerance=1e-5)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float16, 3e-3),
        # Triton's interpreter multiplies the bits of bfloat16 as whole numbers.
        pytest.param(
            torch.bfloat16, 2e-2, marks=pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a GPU")
        ),
    ],
)
def test_lower_precision_is_off_by_its_rounding_alone(dtype, tolerance):
    check([100, 3], 2, 7, 32, dtype, 0, tolerance)


def test_keys_with_a_large_bias_in_common_cost_no_digits():
    """As Qwen2.5-7B's have it: scores up to 200."""
    query, prefix, own, table, pages = draw_case([90], 1, 7, 32, torch.float32, seed=1)
    shift = 30 * query[0, 0, 0] / query[0, 0, 0].norm()
    own[0] += shift
    pages[0].add_(shift)
    prefix[0] += shift
    before = whole(query[0], *prefix[:, 0], 1.0)
    out = attend_pages(
        query, *(part[:, :, 89] for part in own), pages, table, torch.tensor([89], device=DEVICE),
        tuple(part[None].float() for part in before), 1.0,
    )  # fmt: skip
    expected, _ = whole(query[0], *torch.cat([prefix[:, 0], own[:, 0]], -2), 1.0)
    torch.testing.assert_close(out[0].double(), expected, rtol=0, atol=1e-4)


COMPILE = """
import ivgr.kernels.paged_attention as kernels
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

names = [parameter.name for parameter in kernels._attend.params]
fixed = {"HEADS": 4, "GROUP": 7, "ROWS": 16, "SIZE": 128, "WIDE": 128, "PAGE": kernels.PAGE}
kinds = {"table": "*i32", "position": "*i64", "table_stride": "i32", "scaling": "fp32"}
kinds |= {"prefix": "*fp32", "prefix_lse": "*fp32"}
types = {name: "constexpr" if name in fixed else kinds.get(name, "*bf16") for name in names}
aligned = {
    (place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if types[name].startswith("*")
}
source = ASTSource(kernels._attend, types, fixed, aligned)
compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=kernels.LAUNCH)
assert ".local" not in compiled.asm["ptx"] or "ld.local" not in compiled.asm["ptx"]
assert "ld.global.v4.b32" in compiled.asm["ptx"] or "cp.async" in compiled.asm["ptx"]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")
def test_the_kernel_compiles_for_a_data_centre_gpu(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
