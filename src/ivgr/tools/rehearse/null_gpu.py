"""The null GPU: a C library that stands in for the CUDA runtime and cuBLAS.

In: a command of `ivgr`. Out: the same command in a child process, whose PyTorch sees a GPU of the size asked
for. The library is compiled on first use; nothing here loads torch.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from ivgr.core.errors import UserError

SOURCE = Path(__file__).with_name("nullgpu.c")
LOADED = "IVGR_NULL_GPU"  # in the environment of a child: the library that it runs on
INTERPRETED = ("TRITON_INTERPRET", "IVGR_KERNELS")  # would compute kernels instead of launching them
COUNTERS = ("launches", "syncs", "d2h", "h2d")


def is_loaded() -> bool:
    """Whether this process runs on the null GPU."""
    return LOADED in os.environ


def run_on_null_gpu(words: Sequence[str], gigabytes: int) -> int:
    """Runs `ivgr WORDS` in a child process on a null GPU of that many GB; returns its exit code."""
    command = [sys.executable, "-m", "ivgr", *words]
    return subprocess.run(command, env=child_environment(gigabytes), check=False).returncode


def module_command(module: str, words: Sequence[str]) -> list[str]:
    """The command that runs `python -m MODULE WORDS` on the GPU of this process, be it the null GPU."""
    return staged_command(module, words) if is_loaded() else [sys.executable, "-m", module, *words]


def staged_command(module: str, words: Sequence[str]) -> list[str]:
    """The command that does what `python -m MODULE WORDS` does in a `child_environment`."""
    return [sys.executable, "-m", "ivgr.tools.rehearse.run_module", module, *words]


def child_environment(gigabytes: int) -> dict[str, str]:
    """The environment of a process that is to run on a null GPU of that many GB."""
    library = compile_library()
    kept = {name: value for name, value in os.environ.items() if name not in INTERPRETED}
    return kept | {
        LOADED: str(library),
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": _before("LD_LIBRARY_PATH", library.parent),
        "PYTHONPATH": _before("PYTHONPATH", Path(__file__).parents[3]),
        "NULLGPU_GIB": f"{gigabytes * 1e9 / 2**30:.3f}",
        "NULLGPU_COUNT": "1",
        "CUDA_VISIBLE_DEVICES": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _before(variable: str, folder: Path) -> str:
    """The environment's list of folders with `folder` before the others."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get(variable)]))


def compile_library() -> Path:
    """The compiled library, from the cache where it lies already; UserError without a C compiler."""
    folder = _cache() / _key()
    library = folder / "libnullgpu.so"
    if library.exists():
        return library
    compiler = find_compiler()
    if compiler is None:
        raise UserError(
            "rehearse: needs a C compiler to build its null GPU, and there is none; install gcc or set CC"
        )
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"part-{os.getpid()}.so"
    options = [
        "-O1",
        "-shared",
        "-fPIC",
        "-w",
        f"-I{_headers()}",
        str(SOURCE),
        "-o",
        str(part),
        "-ldl",
        "-lpthread",
    ]
    done = subprocess.run([compiler, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join(done.stderr.split())[:200]
        raise UserError(
            f"rehearse: {compiler} cannot compile {SOURCE.name} ({reason}); install gcc or set CC"
        )
    driver = folder / "libcuda.so.1"
    driver.unlink(missing_ok=True)
    driver.symlink_to(library.name)
    part.replace(library)
    return library


def find_compiler() -> str | None:
    """The path of the system's C compiler, which the environment's CC may name."""
    return next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), None)


def counters() -> dict[str, int]:
    """What the library has counted in this process, by the names of COUNTERS."""
    library = ctypes.CDLL(os.environ[LOADED])
    return {name: ctypes.c_uint64.in_dll(library, f"nullgpu_{name}").value for name in COUNTERS}


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "ivgr" / "null_gpu"


def _key() -> str:
    """A name for what the library depends on: its source and the torch that it serves."""
    return hashlib.sha256(SOURCE.read_bytes() + version("torch").encode()).hexdigest()[:16]


def _headers() -> Path:
    """The folder of the CUDA runtime's headers, which Triton brings."""
    found = find_spec("triton")
    if found is None or found.origin is None:
        raise UserError("rehearse: needs the headers that Triton brings; pip install triton")
    return Path(found.origin).parent / "backends" / "nvidia" / "include"
