"""CUDA graphs for decoding: a step launched as one graph instead of kernel by kernel."""

from collections.abc import Callable

import torch


class Replay:
    """Runs `step` from a CUDA graph, captured at the first call.

    `step` must read and write the same tensors every time, and give the same result when it
    runs twice: it is run once more to warm up before the capture
    (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).
    """

    def __init__(self, step: Callable[[], torch.Tensor]) -> None:
        self.step, self.graph, self.output = step, None, None

    def __call__(self) -> torch.Tensor:
        if self.graph is None:
            self._capture()
        self.graph.replay()
        return self.output

    def _capture(self) -> None:
        main, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            self.step()
        main.wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = self.step()
