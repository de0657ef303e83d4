"""The package imports from anywhere, also where triton does not exist."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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
            assert len(path.read_text().splitlines()) <= 250, path
