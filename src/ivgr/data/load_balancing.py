"""An iteration's samples are dealt to ranks by the tokens that they are expected to take.

In: the draws of all ranks, images undecoded. Out: this rank's own. All ranks see the same draws
and deal them alike, so nothing is sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import ProcessorMixin

from ivgr.core.images import read_size
from ivgr.core.prompts import PAIRED, streams_of
from ivgr.core.rejection import Rejection
from ivgr.data.shards import ShardedSample

CHARACTERS = 4  # characters of a question per token
Drawn = ShardedSample | Rejection


@dataclass(frozen=True)
class RankAssignment:
    """The assignment of draws to ranks.

    Args:
        rank: This rank.
        ranks: How many there are.
        shards_by_rank: Ranks draw different samples, so each keeps its own.
        updates: Mini-batches of an iteration, which is dealt so that each of them is spread.
        response: Tokens of all responses that a query is expected to get in one stream.
        streams: Those of paired queries.
    """

    rank: int = 0
    ranks: int = 1
    shards_by_rank: bool = False
    updates: int = 1
    response: int = 0
    streams: tuple[str, ...] = PAIRED

    def take(self, drawn: Sequence[Drawn], processor: ProcessorMixin) -> list[tuple[int, Drawn]]:
        """This rank's part of `drawn`, each with its place among the draws of all ranks."""
        if self.shards_by_rank:
            return [(index * self.ranks + self.rank, item) for index, item in enumerate(drawn)]
        if self.ranks == 1:
            return list(enumerate(drawn))
        costs = [expected_tokens(item, processor, self.response, self.streams) for item in drawn]
        return [(i, drawn[i]) for i in balance_by_cost(costs, self.ranks, self.updates)[self.rank]]


def balance_by_cost(costs: Sequence[int], ranks: int, updates: int = 1) -> list[list[int]]:
    """The indices of `costs` that each rank takes, in order. Within each mini-batch (every
    `updates`-th index) the dearest goes first, always to the rank that has the least so far of
    this mini-batch, then of all."""
    total, taken = [0] * ranks, [[] for _ in range(ranks)]
    for first in range(updates):
        load = [0] * ranks
        part = range(first, len(costs), updates)
        for index in sorted(part, key=lambda i: (-costs[i], i)):
            rank = min(range(ranks), key=lambda r: (load[r], total[r], r))
            taken[rank].append(index)
            load[rank] += costs[index]
            total[rank] += costs[index]
    return [sorted(indices) for indices in taken]


def expected_tokens(
    item: Drawn, processor: ProcessorMixin, response: int, streams: tuple[str, ...] = PAIRED
) -> int:
    """Tokens of the query's tree, in `streams` if it is paired, by the sizes in its images' headers;
    0 for a rejection."""
    if isinstance(item, Rejection):
        return 0
    vision = processor.image_processor
    patches = sum(_patches(data, vision) for data in item.sample.images)
    text = len(item.sample.question) // CHARACTERS
    return patches // vision.merge_size**2 + text + response * len(streams_of(item.kind, streams))


def _patches(data: bytes, vision: Any) -> int:
    """Returns the number of patches of one image, before the merge; 0 if it will be rejected."""
    size = read_size(data)
    if size is None:
        return 0
    try:
        return vision.get_number_of_image_patches(size[1], size[0], {})
    except ValueError:  # too narrow for the processor
        return 0
