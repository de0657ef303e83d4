"""What the null GPU counts and keeps: kernels of a function whose number is known, bytes, true integers."""

import json

import pytest

from ivgr.core.errors import UserError
from ivgr.tools.rehearse import null_gpu
from support.command_line import CONFIGS, fails
from support.rehearsing import needs_compiler, run_on_null_gpu

COUNTED = """
import json
import torch
from ivgr.tools.rehearse.host_integers import HostIntegers
from ivgr.tools.rehearse.phases import Phases
integers = HostIntegers()
phases = Phases(integers)
with integers:
    weight = torch.empty(512, 256, device="cuda", dtype=torch.bfloat16)
    with phases.measure("floats"):
        kept = torch.relu(weight * 2 + 1).sum()        # four kernels, and a memset of the sum's
        kept.item()                                    # one copy, one wait
    with phases.measure("product"):
        weight @ weight.T                              # one GEMM, 512 x 512
    with phases.measure("integers"):
        ids = torch.arange(6, device="cuda")
        found = [(ids * 2).tolist(), ids[ids > 3].tolist(), bool((ids == 5).any())]
        found.append(torch.rand(4, device="cuda").isfinite().all().item())
    with phases.measure("outer"):
        torch.ones(3, device="cuda")
        with phases.measure("inner"):
            torch.ones(3, device="cuda").add_(1)
figures = {name: [one.kernels, one.waits, one.copies, one.peak] for name, one in phases.figures.items()}
print(json.dumps({"figures": figures, "found": found}))
"""


@needs_compiler
def test_kernels_waits_copies_and_bytes_are_those_of_the_code():
    told = json.loads(run_on_null_gpu(COUNTED))
    figures = told["figures"]
    weight = 512 * 256 * 2
    assert figures["floats"][:3] == [5, 1, 1]
    assert figures["floats"][3] == 3 * weight  # the weight, and two of three results at a time
    assert figures["product"][0] == 1 and figures["product"][3] - weight >= 512 * 512 * 2
    assert told["found"] == [[0, 2, 4, 6, 8, 10], [4, 5], True, True]
    assert figures["outer"][0] == 1 and figures["inner"][0] == 2


def test_without_a_compiler_there_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    error = fails(capsys, "rehearse", "--config", str(CONFIGS / "qwen2vl_7b.yaml"))
    assert "C compiler" in error and "install gcc" in error


@needs_compiler
def test_a_compiler_that_fails_is_named(monkeypatch, tmp_path):
    broken = tmp_path / "broken-cc"
    broken.write_text("#!/bin/sh\necho no such header >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="broken-cc cannot compile nullgpu.c .no such header."):
        null_gpu.compile_library()


@needs_compiler
def test_the_library_is_compiled_once(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = null_gpu.compile_library()
    made = library.stat().st_mtime_ns
    assert null_gpu.compile_library() == library and library.stat().st_mtime_ns == made
    assert (library.parent / "libcuda.so.1").resolve() == library
