"""Held-out samples, in the order of their shards."""

from collections.abc import Iterator
from itertools import islice

from torch.utils.data import IterableDataset

from ivgr.core.rejection import Rejection
from ivgr.data.shards import ShardedSample, read_samples


class HeldOut(IterableDataset):
    """Batches of the first `limit` paired samples, in shard order, dealt out to ranks."""

    def __init__(self, shards: list[str], limit: int | None, batch: int, rank: int, ranks: int) -> None:
        self.shards = shards
        self.limit = limit
        self.batch = batch
        self.rank = rank
        self.ranks = ranks

    def __iter__(self) -> Iterator[list[ShardedSample | Rejection]]:
        paired = read_samples(self.shards, ("paired", ""))
        mine = islice(islice(paired, self.limit), self.rank, None, self.ranks)
        while batch := list(islice(mine, self.batch)):
            yield batch
