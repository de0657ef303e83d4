"""Integers stay true on the null GPU, since the code decides by them: shapes that depend on masks and token
ids are what they would be.

In: every operation that PyTorch dispatches. Operations on whole numbers alone run on the CPU, in the very
memory of the null GPU, which is host memory that nothing else touches; all others are launched and counted.
Floats have no value: what is decided by one is 0 or false, except that all are finite. Large float tensors
on the host are not filled either, so that a rehearsal needs little memory.
"""

import ctypes
import math
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

OWN = str(Path(__file__).parent)
PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))
WHOLE = frozenset((torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool))
MOST = 1 << 22  # elements of a tensor of whole numbers that is still computed
LARGE = 1 << 16  # elements of a float tensor on the host that is no longer filled
VIEWS = frozenset((
    "view", "_unsafe_view", "expand", "permute", "transpose", "t", "select", "slice", "unsqueeze", "squeeze",
    "as_strided", "split", "split_with_sizes", "unbind", "detach", "alias", "_reshape_alias", "diagonal",
    "unfold", "narrow", "lift_fresh", "resize_", "set_", "record_stream", "is_same_size", "empty",
    "empty_like", "empty_strided", "new_empty", "new_empty_strided",
))  # fmt: skip
INDEXING = frozenset(("index", "index_put", "index_put_", "_index_put_impl_"))
COUNTED_ON_HOST = frozenset(
    ("nonzero", "_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave")
)
FILLING = frozenset(("uniform_", "normal_", "zero_", "fill_", "copy_", "mul_", "div_", "add_"))
MAKING = frozenset(("clone", "cat", "_to_copy", "mul", "div", "add", "zeros_like"))


def alias_on_host(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor in the memory of `tensor`."""
    storage = tensor.untyped_storage()
    size = storage.nbytes()
    if size == 0 or tensor.numel() == 0:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    room = (ctypes.c_char * size).from_address(storage.data_ptr())
    flat = torch.frombuffer(room, dtype=torch.uint8)[: size - size % tensor.itemsize].view(tensor.dtype)
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def move_up(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor on the null GPU with the whole numbers of `tensor`."""
    up = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
    if tensor.dtype in WHOLE and tensor.numel():
        alias_on_host(up).copy_(tensor)
    return up


class HostIntegers(TorchDispatchMode):
    """kernels, waits, copies: those that the library does not see. places: by kind and source line, how
    often the host waited or copied."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.waits = self.copies = 0
        self.places: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if DTensor in types:
            return NotImplemented  # its own handler comes back with what it consists of
        if not PLAIN.issuperset(types):
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in VIEWS or func.namespace not in ("aten", "prims"):
            return func(*args, **kwargs)
        tensors = _tensors(args, kwargs)
        if not (any(tensor.is_cuda for tensor in tensors) or _names_gpu(kwargs)):
            return self._on_host(func, name, args, kwargs, tensors)
        return self._on_gpu(func, name, args, kwargs, tensors)

    def _on_host(self, func: Any, name: str, args: tuple, kwargs: dict, tensors: list[torch.Tensor]) -> Any:
        """Runs the operation unless it would fill a large float tensor."""
        if name in FILLING and _is_large_float(args[0]):
            return args[0]
        if name in MAKING and any(map(_is_large_float, tensors)):
            options = {key: _to_meta(value) for key, value in kwargs.items() if key != "device"}
            made = func(*tree_map(_to_meta, args), **options)
            return torch.empty_strided(made.shape, made.stride(), dtype=made.dtype)
        return func(*args, **kwargs)

    def _on_gpu(self, func: Any, name: str, args: tuple, kwargs: dict, tensors: list[torch.Tensor]) -> Any:
        if name == "_local_scalar_dense":
            return self._read(func, args[0])
        if special := SPECIAL.get(name):
            self.kernels += 1
            return special(*args)
        if name in INDEXING:
            args = (args[0], self._whole_indices(args[1]), *args[2:])
            tensors = _tensors(args, kwargs)
        whole = all(tensor.dtype in WHOLE for tensor in tensors) and _gives_whole(name, args, kwargs, tensors)
        if whole and _elements(args, tensors) <= MOST:
            return self._with_whole_numbers(func, name, args, kwargs)
        if name in ("_to_copy", "copy_") and _crosses(tensors, kwargs):
            self._note("copy")
        result = func(*args, **kwargs)
        for one in result if isinstance(result, tuple | list) else (result,):
            if _is_fresh_whole(one, tensors):
                alias_on_host(one).fill_(_asks_finite(name, args))
        return result

    def _read(self, func: Any, scalar: torch.Tensor) -> Any:
        """A number that the host fetches and waits for."""
        self._note("wait")
        if scalar.dtype not in WHOLE:
            return func(scalar)  # which the library counts, and gives as 0
        self.waits, self.copies = self.waits + 1, self.copies + 1
        return func(alias_on_host(scalar))

    def _whole_indices(self, indices: list) -> list:
        """Boolean indices as the numbers that they stand for: their count must be fetched."""
        found = []
        for index in indices:
            if isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8):
                self._count_wait()
                host = alias_on_host(index) if index.is_cuda else index
                found += map(move_up, host.nonzero(as_tuple=True))
            else:
                found.append(index)
        return found

    def _with_whole_numbers(self, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
        """Runs the operation on the CPU, in the memory of the null GPU."""
        if name in COUNTED_ON_HOST:
            self._count_wait()
        originals: dict[int, torch.Tensor] = {}
        kept = []  # an id is a tensor's own while it lives

        def down(value: Any) -> Any:
            if isinstance(value, torch.Tensor) and value.is_cuda:
                kept.append(alias_on_host(value))
                originals[id(kept[-1])] = value
                return kept[-1]
            return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value

        crossing = name in ("_to_copy", "copy_") and _crosses(_tensors(args, kwargs), kwargs)
        self._count_copy(kwargs.get("non_blocking", False)) if crossing else self._count_kernel()
        low_args, low_kwargs = tree_map(down, args), tree_map(down, kwargs)
        result = func(*_within(name, low_args), **low_kwargs)
        if crossing and name == "_to_copy" and not _names_gpu(kwargs):
            return result
        return tree_map(lambda one: originals.get(id(one)) if id(one) in originals else _up(one), result)

    def _count_kernel(self) -> None:
        self.kernels += 1

    def _count_copy(self, non_blocking: bool) -> None:
        self._note("copy")
        self.copies += 1
        self.waits += not non_blocking

    def _count_wait(self) -> None:
        self._note("wait")
        self.waits, self.copies = self.waits + 1, self.copies + 1

    def _note(self, kind: str) -> None:
        self.places[kind, calling_line()] += 1


def calling_line() -> str:
    """The innermost line of the stack that is ivgr's own or, of what calls it, Lightning's; else
    transformers': FOLDER/FILE:LINE."""
    frame, second = sys._getframe(1), ""
    while frame is not None:
        file = frame.f_code.co_filename
        if ("/ivgr/" in file and not file.startswith(OWN)) or "/lightning/pytorch/" in file:
            return _place(file, frame.f_lineno)
        if not second and "/transformers/" in file:
            second = _place(file, frame.f_lineno)
        frame = frame.f_back
    return second or "torch"


def _place(file: str, line: int) -> str:
    return f"{'/'.join(file.rsplit('/', 2)[-2:])}:{line}"


def _convolve(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *options: Any
) -> torch.Tensor:
    """The output of a convolution, for which cuDNN would need a GPU."""
    described = torch.ops.aten.convolution(*map(_to_meta, (inputs, weight, bias)), *options)
    return inputs.new_empty(described.shape)


def _convolve_backward(
    gradient: torch.Tensor, inputs: torch.Tensor, weight: torch.Tensor, *options: Any
) -> tuple[torch.Tensor | None, ...]:
    bias = gradient.new_empty(weight.shape[0])
    wanted = zip((inputs, weight, bias), options[-1], strict=True)
    return tuple(torch.empty_like(one) if asked else None for one, asked in wanted)


SPECIAL: dict[str, Callable] = {
    "convolution": _convolve,
    "convolution_backward": _convolve_backward,
    "masked_scatter": lambda target, *_: torch.empty_like(target),
}


def _tensors(args: tuple, kwargs: dict) -> list[torch.Tensor]:
    found = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [one for one in value if isinstance(one, torch.Tensor)]
    return found


def _names_gpu(kwargs: dict) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device).type == "cuda"


def _crosses(tensors: list[torch.Tensor], kwargs: dict) -> bool:
    """Whether a copy goes from one device to the other."""
    places = {tensor.is_cuda for tensor in tensors}
    if (device := kwargs.get("device")) is not None:
        places.add(torch.device(device).type == "cuda")
    return len(places) == 2


def _gives_whole(name: str, args: tuple, kwargs: dict, tensors: list[torch.Tensor]) -> bool:
    """Whether an operation on whole numbers alone gives whole numbers."""
    dtype = kwargs.get("dtype")
    if dtype is not None:
        return dtype in WHOLE
    return bool(tensors) or (name == "arange" and all(isinstance(one, int) for one in args))


def _elements(args: tuple, tensors: list[torch.Tensor]) -> int:
    """At least as many elements as an elementwise operation or the making of a tensor computes."""
    shapes = [tensor.shape for tensor in tensors]
    shapes += [one for one in args if isinstance(one, list | tuple) and all(isinstance(n, int) for n in one)]
    depth = max(map(len, shapes), default=0)
    padded = [(1,) * (depth - len(shape)) + tuple(shape) for shape in shapes]
    return math.prod(max(sizes) for sizes in zip(*padded, strict=True))


def _is_fresh_whole(value: Any, tensors: list[torch.Tensor]) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.is_cuda
        and value.dtype in WHOLE
        and value.numel() <= MOST
        and not any(value is tensor for tensor in tensors)
    )


def _asks_finite(name: str, args: tuple[Any, ...]) -> bool:
    """Whether the operation is a part of `isfinite`, which is x == x and |x| != inf."""
    if name == "eq":
        return args[0] is args[1]
    return name == "ne" and not isinstance(args[1], torch.Tensor) and math.isinf(args[1])


def _within(name: str, args: tuple) -> tuple:
    """The arguments of `gather` with indices that exist: one that a float has chosen may not."""
    if name != "gather" or not args[2].numel():
        return args
    return (args[0], args[1], args[2].clamp(0, args[0].shape[args[1]] - 1))


def _is_large_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() > LARGE


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def _up(value: Any) -> Any:
    return move_up(value) if isinstance(value, torch.Tensor) else value
