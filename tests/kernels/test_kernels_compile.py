"""The kernels compile for a data-centre GPU, also on a machine without one."""

import os
import subprocess
import sys

import pytest

# The interpreter and the compiler cannot be had in one process.
COMPILE = """
import sys
import ivgr.kernels.rows_triton as kernels
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TENSORS = {"logits": "*bf16", "ref_logits": "*bf16", "ids": "*i64", "rows": "*fp32", "grad": "*fp32"}
for kernel, out, best in (
    (kernels._statistics, "*fp32", kernels.STATISTICS),
    (kernels._gradient, "*bf16", kernels.GRADIENT),
):
    names = [parameter.name for parameter in kernel.params]
    fixed = {"SCALE": 1.25, "EXACT": sys.argv[1] == "exact", "ENTROPY": True}
    fixed |= {"COLUMNS": 152064, "WIDE": 8, "BLOCK": best["BLOCK"]}
    fixed = {name: value for name, value in fixed.items() if name in names}
    fixed |= {name: 1 for name in names if name.endswith("column_stride")}
    types = {name: "constexpr" if name in fixed else "i32" for name in names} | {"out": out}
    types |= {name: kind for name, kind in TENSORS.items() if name in names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if types[name].startswith("*") or name.endswith("row_stride")
    }
    source = ASTSource(kernel, types, fixed, aligned)
    options = kernels.LAUNCH | {"num_warps": best["num_warps"]}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert "ld.global.v4.b32" in compiled.asm["ptx"]  # 16 bytes a thread and load
    assert kernel is kernels._statistics or "st.global.v4.b32" in compiled.asm["ptx"]
"""

COMPILE_NUCLEUS = """
import ivgr.kernels.nucleus_triton as kernels
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

fixed = {"COLUMNS": 152064, "BLOCK": kernels.LAUNCH["BLOCK"]}
types = {"probability": "*fp32", "draw": "*fp64", "top_p": "*fp64", "asked": "*i1", "token": "*i64"}
types |= {"total": "*fp64"} | {name: "constexpr" for name in fixed}
aligned = {(place,): [["tt.divisibility", 16]] for place in range(len(types) - len(fixed))}
source = ASTSource(kernels._redraw, types, fixed, aligned)
options = {"num_warps": kernels.LAUNCH["num_warps"]}
compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
assert "ld.global.v4.b32" in compiled.asm["ptx"]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")
@pytest.mark.parametrize("kl", [pytest.param("k3", marks=pytest.mark.slow), "exact"])
def test_kernels_compile_with_full_width_loads(tmp_path, kl):
    run_outside_the_interpreter(tmp_path, COMPILE, kl)


@pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")
def test_sampling_compiles_with_full_width_loads(tmp_path):
    run_outside_the_interpreter(tmp_path, COMPILE_NUCLEUS)


def run_outside_the_interpreter(folder, program, *words):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)}
    command = [sys.executable, "-c", program, *words]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
