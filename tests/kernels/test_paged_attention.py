"""Attention over pages against attention over everything at once, in fp64."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import support.interpreter  # noqa: F401  before triton
from ivgr.kernels.paged_attention import LEAST, PAGE, PIECE, TRIP, attend_pages
from ivgr.kernels.prefixes import Prefixes

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def draw_case(lengths, heads, group, size, dtype, seed, longest=9):
    """Queries, own tokens of `lengths` (the last is new) and pools in which the others lie in pages of any
    order; and prefixes of up to `longest` tokens, of which each branch sees some."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype).to(DEVICE)

    branches, most = len(lengths), -(-max(lengths) // PAGE)
    own = draw(2, branches, heads, max(lengths), size)
    order = torch.randperm(branches * most, generator=generator) + 1
    table = order.view(branches, most).int().to(DEVICE)
    pages = torch.full((2, branches * most + 1, heads, PAGE, size), torch.nan, dtype=dtype, device=DEVICE)
    for branch, length in enumerate(lengths):
        for token in range(length - 1):
            pages[:, table[branch, token // PAGE], :, token % PAGE] = own[:, branch, :, token]
    prefix_of = torch.tensor([branch // 2 for branch in range(branches)])  # two branches each
    column = torch.tensor([branch % 2 for branch in range(branches)])
    count = -(-branches // 2)
    sees = torch.rand(count, 3, longest, generator=generator) < 0.7
    sees[..., 0] = True
    bias = torch.zeros(sees.shape).masked_fill_(~sees, torch.finfo(torch.float32).min)
    branch_table = torch.zeros(count, 3, dtype=torch.long)  # the third column is nobody's
    branch_table[prefix_of, column] = torch.arange(branches)
    prefixes = Prefixes(
        draw(count, heads, longest, size), draw(count, heads, longest, size),
        *(part.to(DEVICE) for part in (branch_table, bias, prefix_of, column)),
    )  # fmt: skip
    return draw(branches, heads, group, size), own, table, (pages[0], pages[1]), prefixes


def whole(query, own, length, prefixes, row, scaling):
    """Attention (H, G, D) of one branch over all that it sees, in fp64."""
    prefix, column = int(prefixes.prefix_of[row]), int(prefixes.column[row])
    seen = prefixes.bias[prefix, column] == 0
    shared = (prefixes.keys[prefix][:, seen], prefixes.values[prefix][:, seen])
    keys, values = (
        torch.cat([part, mine[row, :, :length]], 1).double() for part, mine in zip(shared, own, strict=True)
    )
    return (query[row].double() @ keys.mT * scaling).softmax(-1) @ values


def attend(query, own, table, pages, prefixes, lengths, scaling):
    news = (torch.stack([part[row, :, n - 1] for row, n in enumerate(lengths)]) for part in own)
    position = torch.tensor(lengths, device=DEVICE) - 1
    return attend_pages(query, *news, pages, table, position, prefixes, scaling)


def check(lengths, heads, group, size, dtype, seed, tolerance, longest=9):
    query, own, table, pages, prefixes = draw_case(lengths, heads, group, size, dtype, seed, longest)
    scaling = size**-0.5
    out = attend(query, own, table, pages, prefixes, lengths, scaling)
    for row, length in enumerate(lengths):
        expected = whole(query, own, length, prefixes, row, scaling)
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


@pytest.mark.parametrize("longest", [1, TRIP, TRIP + 1, PIECE, PIECE + 1])
def test_borders_of_a_prefixs_pieces(longest):
    check([2, 1, 3], 1, 7, 16, torch.float32, longest, 1e-5, longest)


def test_more_query_heads_than_a_tile_holds(monkeypatch):
    monkeypatch.setattr("ivgr.kernels.paged_attention.TILE", LEAST)
    check([2, 1, 3], 2, 7, 16, torch.float32, 0, 1e-5)  # 21 rows


def test_keys_with_a_large_bias_in_common_cost_no_digits():
    """As Qwen2.5-7B's have it: scores up to 200."""
    query, own, table, pages, prefixes = draw_case([90], 1, 7, 32, torch.float32, seed=1)
    shift = 30 * query[0, 0, 0] / query[0, 0, 0].norm()
    for keys in (own[0], pages[0], prefixes.keys):
        keys += shift
    out = attend(query, own, table, pages, prefixes, [90], 1.0)
    expected = whole(query, own, 90, prefixes, 0, 1.0)
    torch.testing.assert_close(out[0].double(), expected, rtol=0, atol=1e-4)


COMPILE = """
import ivgr.kernels.paged_attention as kernels
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

FIXED = {"HEADS": 4, "GROUP": 7, "SIBLINGS": 10, "SIZE": 128, "WIDE": 128}
OWN = {"ROWS": 16, "PAGE": kernels.PAGE}
SHARED = {"ROWS": kernels.TILE, "PIECE": kernels.PIECE, "TRIP": kernels.TRIP}
INTEGERS = ("table_stride", "bias_stride", "key_stride", "value_stride", "pieces", "length")
FLOATS = ("before", "before_lse", "bias", "lse")
for kernel, fixed, launch, kinds in (
    (kernels._attend, FIXED | OWN, kernels.LAUNCH, {"table": "*i32"}),
    (kernels._attend_prefix, FIXED | SHARED, kernels.PREFIX_LAUNCH, {"table": "*i64", "out": "*fp32"}),
):
    kinds |= {name: "*i64" for name in ("position", "prefix_of", "place_of")} | {"scaling": "fp32"}
    kinds |= dict.fromkeys(INTEGERS, "i32") | dict.fromkeys(FLOATS, "*fp32")
    names = [parameter.name for parameter in kernel.params]
    types = {name: "constexpr" if name in fixed else kinds.get(name, "*bf16") for name in names}
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if types[name].startswith("*")
    }
    source = ASTSource(kernel, types, fixed, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=launch)
    assert "ld.local" not in compiled.asm["ptx"]
    assert "ld.global.v4.b32" in compiled.asm["ptx"] or "cp.async" in compiled.asm["ptx"]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")
def test_the_kernels_compile_for_a_data_centre_gpu(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
