"""CUDA graphs for decoding: a step launched as one graph instead of kernel by kernel."""

from collections.abc import Callable
from typing import cast

import torch


class CUDAGraphStep:
    """Runs a step from a CUDA graph, captured at the first call.

    The step must be the same at every call, read and write the same tensors, and give the same
    result when it runs twice: it is run once more to warm up before the capture
    (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). It is not kept: a step is
    its owner's method, and an owner that keeps itself is freed only when Python looks for cycles.
    """

    def __init__(self) -> None:
        self.graph: torch.cuda.CUDAGraph | None = None
        self.output = torch.empty(0)

    def __call__(self, step: Callable[[], torch.Tensor]) -> torch.Tensor:
        if self.graph is None:
            self._capture(step)
        cast(torch.cuda.CUDAGraph, self.graph).replay()
        return self.output

    def _capture(self, step: Callable[[], torch.Tensor]) -> None:
        main, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            step()
        main.wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = step()
