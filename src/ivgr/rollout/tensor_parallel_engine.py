"""A rollout engine on a policy that is split over a few ranks. In: any engine and each rank's own queries.
Out: their rollouts; all these ranks respond to the queries of all, in step.
"""

from dataclasses import replace

import torch
import torch.distributed as dist
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ivgr.core.errors import UserError
from ivgr.core.query import Query
from ivgr.distributed.collectives import gather
from ivgr.distributed.tensor_parallel import SETTING
from ivgr.rollout.engine_timeout import TimeoutEngine
from ivgr.rollout.sampling import SamplingConfig
from ivgr.rollout.transformers_engine import RolloutEngine
from ivgr.rollout.vllm_engine import VLLMEngine


def with_tensor_parallel(engine: RolloutEngine, tp_group: dist.ProcessGroup | None) -> RolloutEngine:
    """`engine`, for a policy that the ranks of `tp_group` share; None if each has a whole one. UserError if
    the engine needs whole weights."""
    if tp_group is None:
        return engine
    inner = engine.engine if isinstance(engine, TimeoutEngine) else engine
    if isinstance(inner, VLLMEngine):
        raise UserError(
            f"{SETTING} splits the weights, which VLLMEngine takes whole: set it to 1, or model.engine to "
            "ivgr.TransformersEngine"
        )
    return TensorParallelEngine(engine, tp_group)


class TensorParallelEngine:
    """Has `engine` respond to the queries of all ranks of `tp_group` together, on each of these ranks; each
    keeps the rollouts of its own queries.

    All ranks of tp_group must call `roll_out` equally often. Of `answer` one rank may need more calls than
    another: a rank that has all its answers calls `join`, and takes part in those of the others.
    """

    def __init__(self, engine: RolloutEngine, tp_group: dist.ProcessGroup) -> None:
        self.engine = engine
        self.tp_group = tp_group

    @property
    def sampling(self) -> SamplingConfig:
        return self.engine.sampling

    def roll_out(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: list[Query], seed: int
    ) -> None:
        everyone, _ = self._share(queries, model.device)
        self.engine.roll_out(model, tokenizer, everyone, seed)

    def answer(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: list[Query]
    ) -> None:
        everyone, _ = self._share(queries, model.device)
        self.engine.answer(model, tokenizer, everyone)

    def join(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Takes part in the `answer`s of the other ranks until all have called this."""
        everyone, ended = self._share([], model.device, ended=True)
        while not ended:
            self.engine.answer(model, tokenizer, everyone)
            everyone, ended = self._share([], model.device, ended=True)

    def _share(
        self, queries: list[Query], device: torch.device, ended: bool = False
    ) -> tuple[list[Query], bool]:
        """Returns the queries of all ranks, rank by rank, of which this rank's are the very ones it gave; and
        whether all ranks have said `ended`."""
        found = gather((ended, list(map(_lighten, queries))), self.tp_group)
        parts = [part for _, part in found]
        parts[dist.get_rank(self.tp_group)] = queries
        everyone = [
            self._with_pixels(query, rank, device) for rank, part in enumerate(parts) for query in part
        ]
        return everyone, all(ended for ended, _ in found)

    def _with_pixels(self, query: Query, rank: int, device: torch.device) -> Query:
        """`query` of `rank` with its pixels in main memory, one query's at a time on the ranks' devices."""
        if query.pixel_values is None:
            return query
        own = rank == dist.get_rank(self.tp_group)
        pixels = torch.empty_like(query.pixel_values, device=device)
        if own:
            pixels.copy_(query.pixel_values)
        dist.broadcast(pixels, group=self.tp_group, group_src=rank)
        return query if own else replace(query, pixel_values=pixels.cpu())


def _lighten(query: Query) -> Query:
    """`query` as the other ranks get it: without images and rollouts, of its pixels the shape."""
    pixels = query.pixel_values
    return replace(
        query,
        sample=replace(query.sample, images=()),
        groups=[replace(group, rollouts=[]) for group in query.groups],
        pixel_values=None if pixels is None else pixels.to("meta"),
    )
