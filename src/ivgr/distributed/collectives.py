"""Collectives. In: what each rank has found. Out: the same on all ranks.

Every function is a collective: all ranks, or those that it is given, must call it, in the same order.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist

from ivgr.core.errors import UserError
from ivgr.core.query import Query, Rollout, global_indices


def in_process_group() -> bool:
    """Whether this process is one of ranks that can talk to each other."""
    return dist.is_available() and dist.is_initialized()


def all_reduce_sum(tensor: torch.Tensor) -> None:
    """Puts the sum over all ranks into `tensor`, which lies where the ranks' backend reads it."""
    if in_process_group():
        dist.all_reduce(tensor)


def sum_ranks(value: float, device: torch.device) -> float:
    """The sum of all ranks' values, in float32, or in int64 where they are whole numbers."""
    total = torch.tensor(value, device=device)
    all_reduce_sum(total)
    return total.item()


def any_rank(found: bool, device: torch.device) -> bool:
    """Whether any rank has found it."""
    return sum_ranks(float(found), device) > 0


def gather(found: object, ranks: dist.ProcessGroup | None = None) -> list:
    """Returns what each rank has found, or each of `ranks`, in rank order."""
    if not in_process_group():
        return [found]
    gathered: list[object] = [None] * dist.get_world_size(ranks)
    dist.all_gather_object(gathered, found, ranks)
    return gathered


def gather_lists(found: list) -> list:
    """The lists of all ranks as one, in rank order."""
    return [item for part in gather(found) for item in part]


def agree(call: Callable[[], None]) -> None:
    """Runs `call`, which makes no collective itself; where it raises UserError on any rank, all ranks raise
    that of the first, so that none waits for one that has stopped."""
    fault = None
    try:
        call()
    except UserError as error:
        fault = str(error)
    first = next((found for found in gather(fault) if found is not None), None)
    if first is not None:
        raise UserError(first)


def gather_queries(queries: list[Query]) -> list[Query]:
    """The queries of all ranks by their place in the iteration, without images and log-probs if
    there are several ranks."""
    if not in_process_group():
        return queries
    mine = [(place, _lighten(query)) for place, query in zip(global_indices(queries), queries, strict=True)]
    return [query for _, query in sorted(gather_lists(mine), key=lambda pair: pair[0])]


def _lighten(query: Query) -> Query:
    sample = replace(query.sample, images=())
    groups = [replace(group, rollouts=list(map(_without_logp, group.rollouts))) for group in query.groups]
    return replace(query, sample=sample, groups=groups, pixel_values=None, image_grid_thw=None)


def _without_logp(rollout: Rollout) -> Rollout:
    none = torch.empty(0)
    return replace(rollout, logp=none, sampling_logp=none)
