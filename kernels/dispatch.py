"""The choice of the implementation for a device and the registration of operators, in one place."""

import os
from collections.abc import Callable
from types import ModuleType

import torch

PYTHON_OPERATORS: dict[torch._ops.OpOverload, Callable] = {}
"""What runs inside each operator, for tools that look into it."""


def uses_triton(device: torch.device) -> bool:
    """Whether Triton's kernels serve tensors on `device`: on CUDA they do, elsewhere PyTorch does; the
    environment's IVGR_KERNELS=torch|triton forces one.

    Raises:
        ValueError: IVGR_KERNELS is something else.
        RuntimeError: Triton is forced on the CPU outside its interpreter.
    """
    choice = os.environ.get("IVGR_KERNELS") or ("triton" if device.type == "cuda" else "torch")
    if choice not in ("torch", "triton"):
        raise ValueError(f"IVGR_KERNELS is {choice!r}, must be torch or triton")
    if choice == "triton" and device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("IVGR_KERNELS=triton on the CPU needs TRITON_INTERPRET=1, set before the start")
    return choice == "triton"


def row_kernels(device: torch.device) -> ModuleType:
    """The module with `row_statistics` and `row_gradient` for tensors on `device`.

    Raises:
        ImportError: Triton is called for and not installed.
    """
    if uses_triton(device):
        from . import rows_triton

        return rows_triton
    from . import rows_torch

    return rows_torch


def operator(schema: str, mutates: tuple[str, ...] = ()) -> Callable[[Callable], Callable]:
    """Registers a function as `torch.ops.ivgr.<its name>`, opaque to autograd and compilers."""

    def register(function: Callable) -> torch.library.CustomOpDef:
        name = function.__name__
        definition = torch.library.custom_op(f"ivgr::{name}", function, mutates_args=mutates, schema=schema)
        PYTHON_OPERATORS[getattr(torch.ops.ivgr, name).default] = function
        return definition

    return register
