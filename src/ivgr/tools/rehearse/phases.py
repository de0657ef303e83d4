"""The phases of a rehearsal, and what each holds, needs and does.

In: blocks of code, each measured under the name of a phase. Out: a `PhaseFigures` per phase. A block within
another counts for its own phase only.
"""

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ivgr.tools.rehearse import null_gpu
from ivgr.tools.rehearse.host_integers import HostIntegers
from ivgr.tools.rehearse.peak_lines import find_peak_lines
from ivgr.tools.rehearse.stand_ins import Counter as StandInCounter

NAMES = (
    "load", "split", "rollout_prefill", "rollout_decode", "reference", "old_logp", "update", "optimizer",
    "checkpoint",
)  # fmt: skip
EVENTS = 100_000  # allocations and frees that are remembered, of which the lines at the peak are read


@dataclass
class PhaseFigures:
    """held: bytes allocated at the end; peak: most that were; reserved: most that PyTorch's allocator took
    from the GPU, its unused blocks given back before the phase. kernels, waits, copies: launched, waited for
    by the host, made between it and the GPU. places: source lines of waits and copies. lines: bytes at the
    peak by source line."""

    held: int = 0
    peak: int = 0
    reserved: int = 0
    kernels: int = 0
    waits: int = 0
    copies: int = 0
    places: Counter[tuple[str, str]] = field(default_factory=Counter)
    lines: list[tuple[str, int]] = field(default_factory=list)

    def add(self, counts: Counter[str], places: Counter[tuple[str, str]], times: float = 1) -> None:
        """Adds counts of kernels, waits and copies, `times` over."""
        for name in ("kernels", "waits", "copies"):
            setattr(self, name, getattr(self, name) + round(counts[name] * times))
        self.places.update({place: round(count * times) for place, count in places.items()})


class Phases:
    """Measures what runs under `integers` on the null GPU."""

    def __init__(self, integers: HostIntegers) -> None:
        self.integers = integers
        self.figures: dict[str, PhaseFigures] = {}
        self.running: list[str] = []
        self.before = self.counts()

    def counts(self) -> Counter[str]:
        """Kernels, waits and copies since the start of the process."""
        own, library = self.integers, null_gpu.counters()
        return Counter(
            kernels=library["launches"] + own.kernels + StandInCounter.kernels,
            waits=library["syncs"] + own.waits,
            copies=library["d2h"] + library["h2d"] + own.copies,
        )

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Counts what the block does as phase `name`."""
        self._close()
        self.running.append(name)
        self._open()
        try:
            yield
        finally:
            self._close()
            self.running.pop()
            self._open()

    def note_peak(self) -> None:
        """Notes the peak of the running block so far, and its lines, before there are more events than are
        remembered; those are forgotten."""
        self._take_peak(self.figures.setdefault(self.running[-1], PhaseFigures()))
        torch.cuda.memory._record_memory_history(None)
        _remember_allocations()

    def _take_peak(self, figures: PhaseFigures) -> None:
        if torch.cuda.max_memory_allocated() > figures.peak:
            figures.peak = torch.cuda.max_memory_allocated()
            figures.lines = find_peak_lines(torch.cuda.memory._snapshot())

    def wrap(self, name: str, call: Callable) -> Callable:
        """`call`, measured as phase `name`."""

        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.measure(name):
                return call(*args, **kwargs)

        return measured

    def multiply(self, counts: Counter[str], places: Counter[tuple[str, str]], times: float) -> None:
        """Adds to the running phase what would have been done `times` over and was not."""
        self.figures.setdefault(self.running[-1], PhaseFigures()).add(counts, places, times)

    def _open(self) -> None:
        if not self.running:
            return
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        _remember_allocations()
        self.integers.places.clear()
        self.before = self.counts()

    def _close(self) -> None:
        """Takes the figures of the block that ends or is broken into."""
        if not self.running:
            return
        figures = self.figures.setdefault(self.running[-1], PhaseFigures())
        figures.add(self.counts() - self.before, self.integers.places)
        figures.held = torch.cuda.memory_allocated()
        figures.reserved = max(figures.reserved, torch.cuda.max_memory_reserved())
        self._take_peak(figures)
        torch.cuda.memory._record_memory_history(None)

    def repeat(self, name: str, times: float) -> None:
        """Says that phase `name` is done `times` over in an iteration."""
        figures = self.figures[name]
        counts = Counter(kernels=figures.kernels, waits=figures.waits, copies=figures.copies)
        figures.add(counts, figures.places.copy(), times - 1)


def _remember_allocations() -> None:
    """Records allocations and frees with their source lines."""
    torch.cuda.memory._record_memory_history("all", context="alloc", stacks="python", max_entries=EVENTS)
