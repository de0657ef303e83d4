"""The order in which samples are seen: seeded, split by rank and worker, resumable.

An iteration takes `prompts` prompts on this rank: `paired_ratio` of them in paired
queries (two prompts each), the rest single. Iteration i is served by reader i mod
(readers of the rank); a reader owns its share of the shards, so the order depends only on
(seed, ranks, readers) and any iteration can be reached again by skipping raw bytes.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import webdataset as wds
from torch.utils.data import IterableDataset, get_worker_info

from ivgr.data.sample import Sample, read_sample
from ivgr.data.shards import read_shards
from ivgr.errors import UserError
from ivgr.seeding import derive_seed


@dataclass(frozen=True)
class Mix:
    """Queries an iteration on one rank."""

    paired: int
    single: int

    @classmethod
    def of(cls, prompts: int, paired_ratio: float) -> "Mix":
        """`paired_ratio` is a share of prompts; a paired query counts two."""
        if not 0 <= paired_ratio <= 1:
            raise UserError(f"data.paired_ratio is {paired_ratio}, must lie in [0, 1]")
        paired = round(prompts * paired_ratio / 2)
        mix = cls(paired, prompts - 2 * paired)
        if mix.single < 0 or mix.paired + mix.single == 0 or (paired_ratio == 1 and mix.single):
            raise UserError(
                f"data.prompts is {prompts}: cannot be split at data.paired_ratio {paired_ratio}; "
                "take an even number of at least 2"
            )
        return mix


class SampleStream(IterableDataset):
    """Yields one list of samples an iteration, for ever, from iteration `start` on."""

    def __init__(
        self,
        shards: list[str],
        mix: Mix,
        seed: int,
        shuffle: int,
        rank: int = 0,
        ranks: int = 1,
        start: int = 0,
    ) -> None:
        self.shards, self.mix, self.seed, self.shuffle = shards, mix, seed, shuffle
        self.rank, self.ranks, self.start = rank, ranks, start

    def __iter__(self) -> Iterator[list[Sample]]:
        worker = get_worker_info()
        readers = worker.num_workers if worker else 1
        reader = ((worker.id if worker else 0) + self.start) % readers
        share = self.rank * readers + reader, self.ranks * readers
        served = len(range(reader, self.start, readers))
        paired = self._samples("paired", self.mix.paired, share, served * self.mix.paired)
        single = self._samples("single", self.mix.single, share, served * self.mix.single)
        while True:
            queries = [next(paired) for _ in range(self.mix.paired)]
            yield queries + [next(single) for _ in range(self.mix.single)]

    def _samples(self, kind: str, wanted: int, share: tuple[int, int], skip: int) -> Iterator[Sample]:
        """The endless samples of one kind, after the first `skip`."""
        if wanted == 0:
            return
        epoch = 0
        while True:
            for sample in self._epoch(kind, epoch, share):
                if skip > 0:
                    skip -= 1
                else:
                    yield sample
            epoch += 1

    def _epoch(self, kind: str, epoch: int, share: tuple[int, int]) -> Iterator[Sample]:
        """One pass over this reader's shards: shard order, then a shuffle buffer of
        undecoded samples, both seeded."""
        order = list(self.shards)
        random.Random(derive_seed(self.seed, "shards", epoch)).shuffle(order)
        samples = map(read_sample, read_shards(order[share[0] :: share[1]]))
        wanted = (sample for sample in samples if sample.kind == kind)
        seed = derive_seed(self.seed, "samples", epoch, share, kind) % 2**31
        found = False
        for sample in wds.detshuffle(bufsize=self.shuffle, initial=self.shuffle, seed=seed).run(wanted):
            found = True
            yield sample
        if not found:
            raise UserError(
                f"reader {share[0]} of {share[1]}: no {kind!r} sample in its shards "
                f"({', '.join(order[share[0] :: share[1]])}); mix the kinds within each shard"
            )
