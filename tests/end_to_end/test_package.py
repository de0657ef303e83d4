"""The package imports from anywhere, also where triton does not exist."""

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITHOUT_TRITON = "import sys; sys.modules['triton'] = None; "


@pytest.mark.parametrize("folder", [ROOT, ROOT / "tests", Path("/")], ids=["root", "tests", "elsewhere"])
@pytest.mark.parametrize("prelude", ["", WITHOUT_TRITON], ids=["", "without triton"])
def test_imports_from_any_directory(folder, prelude):
    code = prelude + "import ivgr, ivgr.kernels; print(ivgr.kernels.__name__)"
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout == "ivgr.kernels\n", run.stderr


def test_the_folder_named_kernels_does_not_confuse_transformers():
    code = "import kernels, transformers; from transformers import AutoModelForImageTextToText, AutoProcessor"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_sources_are_short():
    for folder in ("src", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400, path


WATCH = """
import os, runpy, sys

class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(*(os.environ.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")))
            sys.exit()

sys.meta_path.insert(0, Watch())
sys.argv = ["ivgr", "synth", "--help"]
runpy.run_module("ivgr", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "PASSIVE 1000"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ({"GOMP_SPINCOUNT": "7"}, "PASSIVE 7"),
    ],
)
def test_threads_spin_briefly_unless_the_user_says_otherwise(given, found):
    """It must be said before torch is loaded. Both ways to start the command go through one module."""
    kept = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    said = subprocess.run(
        [sys.executable, "-c", WATCH], env=kept | given, capture_output=True, text=True, check=True
    )
    assert said.stdout.splitlines()[0] == found
    script = next(point for point in entry_points(group="console_scripts") if point.name == "ivgr")
    assert script.module == "ivgr.__main__"
