"""Dummy packs. With sharded weights a forward pass is a collective: all ranks must run equally many,
through the same layers. In: each rank's packs. Out: the same, with dummy packs (which add no token) on a
rank that has fewer packs than another, or no image where another has one."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest

from transformers import PreTrainedModel

from ivgr.data.encode import QueryEncoder
from ivgr.distributed.collectives import gather
from ivgr.packing.prefix_tree import Pack, pack_queries


@dataclass
class DummyPackPadder:
    """Adds dummy packs for `model`."""

    model: PreTrainedModel
    encoder: QueryEncoder

    def __call__(self, packs: list[Pack]) -> list[Pack]:
        """Returns the `packs` of one mini-batch with dummy packs added; all ranks must call it."""
        pictures = gather([bool(pack.pixels) for pack in packs])
        needed = [any(turn) for turn in zip_longest(*pictures, fillvalue=False)]
        return [self._fill(pack, picture) for pack, picture in zip_longest(packs, needed)]

    def _fill(self, pack: Pack | None, picture: bool) -> Pack:
        if pack is not None and (pack.pixels or not picture):
            return pack
        queries = [*(pack.queries if pack else []), self.encoder.filler(picture)]
        (filled,) = pack_queries(self.model, queries, budget=sys.maxsize)
        return filled


PadWithDummyPacks = Callable[[list[Pack]], list[Pack]]
