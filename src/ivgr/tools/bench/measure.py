"""Honest measuring: contenders take turns in one process, medians are reported, and memory
is measured in a first run of its own, which also warms up.

In: what to run. Out: a `Measurement` each.
"""

import statistics
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from ivgr.kernels.dispatch import PYTHON_OPERATORS
from ivgr.models.registry import find_family
from ivgr.rollout.transformers_engine import TransformersEngine


@dataclass(frozen=True)
class Measurement:
    """seconds: median; tokens: through the policy's language model in one forward pass;
    vision_passes: images through the policy's vision tower; peak_bytes: the most that
    tensors held above the start; rollout_seconds: median of the generation alone, where
    a run is a whole iteration; steps: decoding passes of a run, where they are counted."""

    seconds: float
    tokens: int
    vision_passes: int
    peak_bytes: int
    rollout_seconds: float | None = None
    steps: int | None = None


class Clock:
    """Measures runs on `model`: the first for memory, the others for time."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.images = []
        self.peak = None
        self.seconds = []
        self.rollouts = []
        self.cuda = model.device.type == "cuda"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Times the run in the block."""
        with self._memory() if self.peak is None else self._appending(self.seconds):
            yield

    @contextmanager
    def rolling_out(self) -> Iterator[None]:
        """Around the rollout phase of a run that is a whole iteration."""
        with self._appending(self.rollouts):
            yield

    def measurement(self, tokens: int) -> Measurement:
        rollout = statistics.median(self.rollouts[1:]) if self.rollouts else None
        return Measurement(statistics.median(self.seconds), tokens, sum(self.images), self.peak or 0, rollout)

    @contextmanager
    def _appending(self, seconds: list[float]) -> Iterator[None]:
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        seconds.append(time.perf_counter() - start)

    @contextmanager
    def _memory(self) -> Iterator[None]:
        tower = find_family(self.model.config.model_type).vision_tower(self.model)
        hook = tower.register_forward_hook(self._count, with_kwargs=True)
        with hook, live_bytes(self.model.device) as peak:
            yield
        self.peak = peak()

    def _count(self, module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.images.append(len(kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]))

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Contender:
    """`run` does the work once on `model`, with `tokens` tokens in a forward pass; engine counts its decoding
    steps."""

    model: PreTrainedModel
    run: Callable[[], object]
    tokens: int
    engine: TransformersEngine | None = None


def measure(contenders: dict[str, Contender], repeats: int) -> dict[str, Measurement]:
    """All contenders once for their memory, then `repeats` rounds in which they take turns."""
    clocks = {name: Clock(contender.model) for name, contender in contenders.items()}
    for _ in range(repeats + 1):
        for name, contender in contenders.items():
            with clocks[name].running():
                contender.run()
    found = {name: clocks[name].measurement(contender.tokens) for name, contender in contenders.items()}
    engines = {name: contender.engine for name, contender in contenders.items() if contender.engine}
    return found | {
        name: replace(found[name], steps=engine.steps // (repeats + 1)) for name, engine in engines.items()
    }


class LiveBytes(TorchDispatchMode):
    """Sums the storages that operations inside make and that are still alive (CPU); looks
    into the package's own operators."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PYTHON_OPERATORS:
            with self:
                return PYTHON_OPERATORS[func](*args, **(kwargs or {}))
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if _is_dense(leaf)}
        result = func(*args, **(kwargs or {}))
        made = {id(s): s for s in (leaf.untyped_storage() for leaf in tree_leaves(result) if _is_dense(leaf))}
        for storage in (storage for key, storage in made.items() if key not in given):
            self._add(storage.nbytes())
            weakref.finalize(storage, self._add, -storage.nbytes())
        return result

    def _add(self, count: int) -> None:
        self.live += count
        self.peak = max(self.peak, self.live)


def _is_dense(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided and not leaf.is_meta


@contextmanager
def live_bytes(device: torch.device) -> Iterator[Callable[[], int]]:
    """Yields a function that says, afterwards, the most bytes that tensors held above the
    start."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield lambda: torch.cuda.max_memory_allocated() - before
    else:
        with LiveBytes() as mode:
            yield lambda: mode.peak
