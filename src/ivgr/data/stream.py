"""The order in which samples are seen: seeded, split by rank and worker, resumable.

An iteration takes `prompts` prompts on this rank: `paired_ratio` of them in paired
queries (two prompts each), the rest single. Iteration i is served by reader i mod
(readers of the rank); a reader owns its share of the shards, so the order depends only on
(seed, ranks, readers) and any iteration can be reached again by skipping what lies before it,
whose images are never read. For that, a broken sample keeps its place: the iteration that draws
it gets a `Rejection` instead.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice, repeat

import webdataset as wds
from torch.utils.data import IterableDataset, get_worker_info

from ivgr.core.errors import UserError
from ivgr.core.rejection import Rejection
from ivgr.core.sample import KINDS
from ivgr.core.seeding import derive_seed
from ivgr.core.settings import Share, checked
from ivgr.data.shards import ShardedSample, load_images, read_heads
from ivgr.data.weighted_sampling import weighted_round_robin


@dataclass(frozen=True)
class BatchComposition:
    """Queries an iteration on one rank."""

    paired: int
    single: int

    @classmethod
    @checked("data.")
    def of(cls, prompts: int, paired_ratio: Share, streams: int = 2) -> "BatchComposition":
        """`paired_ratio` is a share of prompts; a paired query counts one for each of `streams`."""
        paired = round(prompts * paired_ratio / streams)
        mix = cls(paired, prompts - streams * paired)
        if mix.single < 0 or mix.paired + mix.single == 0 or (paired_ratio == 1 and mix.single):
            raise UserError(
                f"data.prompts is {prompts}: cannot be split at data.paired_ratio {paired_ratio}; "
                "take an even number of at least 2"
            )
        return mix


@dataclass(frozen=True)
class WeightedSource:
    """The shards of one source, its weight among the sources, and the kinds it holds."""

    shards: list[str]
    weight: float = 1.0
    kinds: tuple[str, ...] = KINDS


class SampleStream(IterableDataset):
    """Yields one list of draws an iteration, for ever, from iteration `start` on. The draws of
    each kind are dealt to the feeds that hold it by weight."""

    def __init__(
        self,
        feeds: list[WeightedSource],
        mix: BatchComposition,
        seed: int,
        shuffle: int,
        rank: int = 0,
        ranks: int = 1,
        start: int = 0,
    ) -> None:
        self.feeds = feeds
        self.mix = mix
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.ranks = ranks
        self.start = start

    def __iter__(self) -> Iterator[list[ShardedSample | Rejection]]:
        worker = get_worker_info()
        readers = worker.num_workers if worker else 1
        reader = ((worker.id if worker else 0) + self.start) % readers
        paired = self._draws("paired", self.mix.paired, reader, readers)
        single = self._draws("single", self.mix.single, reader, readers)
        for one, other in zip(paired, single, strict=True):
            yield one + other

    def _draws(self, kind: str, wanted: int, reader: int, readers: int) -> Iterator[list]:
        """The draws of one kind in each iteration of this reader. All readers of a rank deal
        alike, so that its iterations in order follow the weights."""
        if wanted == 0:
            yield from repeat([])
        holders = [i for i, feed in enumerate(self.feeds) if kind in feed.kinds]
        seed = derive_seed(self.seed, "sources", self.rank, kind)
        dealt = weighted_round_robin([self.feeds[i].weight for i in holders], seed)
        share = self.rank * readers + reader, self.ranks * readers
        skipped: Counter = Counter()
        samples: dict[int, Iterator] = {}
        for iteration in count():
            chosen = [holders[i] for i in islice(dealt, wanted)]
            if iteration % readers != reader:
                continue
            if iteration < self.start:
                skipped.update(chosen)
                continue
            for i in set(chosen) - samples.keys():
                samples[i] = islice(self._samples(kind, i, share), skipped[i], None)
            yield [load_images(next(samples[i])) for i in chosen]

    def _samples(self, kind: str, feed: int, share: tuple[int, int]) -> Iterator[ShardedSample | Rejection]:
        """The endless samples of one kind from one feed, their images not loaded."""
        for epoch in count():
            yield from self._epoch(kind, feed, epoch, share)

    def _epoch(self, kind: str, feed: int, epoch: int, share: tuple[int, int]) -> Iterator:
        """One pass over this reader's shards: shard order, then a shuffle buffer of
        unread samples, both seeded."""
        own = derive_seed(self.seed, "source", feed) if feed else self.seed
        order = list(self.feeds[feed].shards)
        random.Random(derive_seed(own, "shards", epoch)).shuffle(order)
        mine = order[share[0] :: share[1]]
        kinds = ("", kind) if kind == self._home(feed) else (kind,)
        wanted = (item for item in read_heads(mine) if item.kind in kinds)
        seed = derive_seed(own, "samples", epoch, share, kind) % 2**31
        found = False
        for item in wds.detshuffle(bufsize=self.shuffle, initial=self.shuffle, seed=seed).run(wanted):
            found = found or isinstance(item, ShardedSample)
            several = len(self.feeds) > 1 and isinstance(item, ShardedSample)
            yield replace(item, source=feed) if several else item
        if not found:
            raise UserError(
                f"reader {share[0]} of {share[1]}: no {kind!r} sample in its shards "
                f"({', '.join(mine)}); mix the kinds within each shard"
            )

    def _home(self, feed: int) -> str:
        """The kind whose place a broken sample of unknown kind takes."""
        return "paired" if self.mix.paired and "paired" in self.feeds[feed].kinds else "single"
