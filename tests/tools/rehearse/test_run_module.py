"""Another program on the null GPU: what stands in for its numbers and its files, and what does not."""

import os
from pathlib import Path

from ivgr.tools.bench.children import run_child
from ivgr.tools.rehearse import null_gpu
from support.rehearsing import needs_compiler

TESTS = """
import torch

def test_a_number():
    assert torch.ones(2, device="cuda").sum().item() == 2

def test_an_error():
    torch.ones(2, device="cuda") @ torch.ones(3, 3, device="cuda")
"""
STOCK = """
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from ivgr.models.pretrained import TINY
from ivgr.rollout.cuda_graph import CUDAGraphStep

model = AutoModelForImageTextToText.from_pretrained(TINY, dtype=torch.float32)
assert model.lm_head.weight.isfinite().all()  # what is written is read
model.save_pretrained(sys.argv[1])
assert [path.name for path in Path(sys.argv[1]).iterdir()] == ["config.json"]
again = AutoModelForImageTextToText.from_pretrained(sys.argv[1], dtype=torch.bfloat16).to("cuda")
assert type(again) is type(model) and again.dtype == torch.bfloat16 and again.device.type == "cuda"
assert [one.shape for one in again.parameters()] == [one.shape for one in model.parameters()]
step = CUDAGraphStep()
assert [step(lambda: torch.arange(count, device="cuda")).tolist() for count in (2, 3)] == [[0, 1], [0, 1, 2]]
print("ran")
"""


def staged(folder: Path, module: str, *words: str) -> tuple[int | None, list[str]]:
    """What `python -m MODULE WORDS` on the null GPU leaves, with the modules of `folder`."""
    environment = null_gpu.child_environment(150)
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), environment["PYTHONPATH"]])
    return run_child(null_gpu.staged_command(module, words), 300, folder, environment)


@needs_compiler
def test_a_test_may_be_wrong_in_its_numbers_alone(tmp_path):
    (tmp_path / "test_both.py").write_text(TESTS)
    code, lines = staged(tmp_path, "pytest", "-q", "-p", "no:cacheprovider", "test_both.py")
    assert code == 1 and "1 failed, 1 passed" in lines[-1], lines
    assert any("test_an_error" in line for line in lines)


@needs_compiler
def test_weights_that_were_not_written_are_made(tmp_path):
    (tmp_path / "stock_code.py").write_text(STOCK)
    code, lines = staged(tmp_path, "stock_code", str(tmp_path / "model"))
    assert code == 0 and lines[-1] == "ran", lines


def test_a_command_runs_on_the_gpu_of_its_process(monkeypatch):
    monkeypatch.delenv(null_gpu.LOADED, raising=False)
    assert null_gpu.module_command("ivgr", ["bench"])[1:] == ["-m", "ivgr", "bench"]
    monkeypatch.setenv(null_gpu.LOADED, "library")
    assert null_gpu.module_command("ivgr", ["bench"])[2:] == [
        "ivgr.tools.rehearse.run_module",
        "ivgr",
        "bench",
    ]
