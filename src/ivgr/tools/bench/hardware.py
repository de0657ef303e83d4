"""`python -m ivgr.tools.bench.hardware`: what this machine measures with, as one line of JSON."""

import json
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ivgr.callbacks.run_metadata import environment

PACKAGES = ("triton", "trl", "liger-kernel", "peft")


def describe() -> dict[str, Any]:
    """gpu (None without one), its memory in bytes, driver, commit and versions."""
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    known = environment()
    return {
        "gpu": gpu and gpu.name,
        "bytes": gpu and gpu.total_memory,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "commit": known["commit"],
        "versions": known["versions"] | {name: _version(name) for name in PACKAGES},
    }


def _driver() -> str | None:
    """As nvidia-smi names it, where it is there."""
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False)
    return (said.stdout.split() or [None])[0] if said.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(json.dumps(describe()))
