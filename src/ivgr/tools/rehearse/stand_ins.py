"""What needs a GPU that computes, and what stands in for it: the launch of Triton kernels, FlexAttention and
CUDA graphs; in a rehearsal the talk between ranks and the files of a checkpoint, too.

Each stand-in allocates what the original keeps and returns, and counts one kernel for each that the original
launches.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import transformers.integrations.flex_attention as hf_flex
from torch.utils._pytree import tree_leaves
from triton.runtime.jit import JITFunction

from ivgr.core.sharding import local_part
from ivgr.distributed import collectives
from ivgr.rollout.cuda_graph import CUDAGraphStep
from ivgr.trainer import optimizer_step


class Counter:
    """Kernels that stand-ins have counted in place of the library."""

    kernels = 0


class FlexAttention(torch.autograd.Function):
    """What FlexAttention keeps for its backward pass (queries, keys, values, output, log-sum-exp) and what
    that makes; a kernel forward, and two backward."""

    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        query = inputs[0]
        Counter.kernels += 1
        output, lse = torch.empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(*inputs, output, lse)
        return output, lse

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        *inputs, _, lse = ctx.saved_tensors
        Counter.kernels += 2
        delta = torch.empty_like(lse)
        gradients = tuple(torch.empty_like(one) for one in inputs)
        del delta
        return gradients


def flex_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    training: bool = False,
    return_aux: Any = None,
    **_: Any,
) -> Any:
    """Has the signature of `compile_friendly_flex_attention` of transformers."""
    output, lse = FlexAttention.apply(query, key, value)  # pyright: ignore[reportGeneralTypeIssues]
    return output if return_aux is None else (output, SimpleNamespace(lse=lse))


def launch_triton(self: JITFunction, *_: Any, grid: Any, warmup: bool, **options: Any) -> None:
    """Counts the launch of a Triton kernel."""
    Counter.kernels += 1


def gather_own(gathered: list, found: Any, group: Any = None) -> None:
    """Fills `gathered` as if the other ranks had lists without items, and all else as this one."""
    gathered[:] = [found, *([] if isinstance(found, list) else found for _ in gathered[1:])]


def sum_own(value: float, device: torch.device) -> float:
    """Sums over ranks as `sum_ranks`, and returns this rank's own value: floats have none on the null GPU."""
    collectives.all_reduce_sum(total := torch.tensor(value, device=device))
    total.item()
    return value


def write_nothing(state: Any, *_: Any, **__: Any) -> None:
    """Copies every tensor of `state` to the host, one after the other, and writes none."""
    for leaf in tree_leaves(state):
        if isinstance(leaf, torch.Tensor) and leaf.is_cuda:
            local_part(leaf.detach()).cpu()


def run_ungraphed(self: CUDAGraphStep, step: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Launches the kernels of a CUDA graph one by one."""
    return step()


DEVICE = (
    (JITFunction, "run", launch_triton),
    (hf_flex, "compile_friendly_flex_attention", flex_attention),
    (CUDAGraphStep, "__call__", run_ungraphed),
)
RECIPE = (
    (dist, "all_gather_object", gather_own),
    (dcp, "save", write_nothing),
    (torch, "save", write_nothing),
    (collectives, "sum_ranks", sum_own),
    (optimizer_step, "sum_ranks", sum_own),
)


@contextmanager
def stand_ins(more: Iterable[tuple[Any, str, Any]] = ()) -> Iterator[None]:
    """In the body, those of DEVICE and `more` (owner, name, stand-in) stand in."""
    torch.backends.cuda.enable_cudnn_sdp(False)
    with ExitStack() as stack:
        for owner, name, stand_in in (*DEVICE, *more):
            stack.enter_context(patch.object(owner, name, stand_in))
        yield
