"""Cold-start data from shards: every reasoning text of every sample is one demonstration.

A step takes the next `batch` demonstrations of a seeded order, dealt out over the ranks; the
order depends on the seed and the shards alone, and any step can be reached again.
"""

import random
from collections.abc import Iterator
from functools import partial
from itertools import count, islice

import lightning as L
import webdataset as wds
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ivgr.data.datamodule import HeldOut, encode_all
from ivgr.data.demonstration import Demonstration, encode_demonstrations
from ivgr.data.prompts import GROUNDED, SINGLE, TEXTUAL
from ivgr.data.sample import Sample, read_sample
from ivgr.data.shards import find_shards, read_shards, take_stock
from ivgr.errors import UserError
from ivgr.seeding import derive_seed, run_seed


class ColdStart(L.LightningDataModule):
    """Demonstrations for training and held-out questions from WebDataset shards.

    Args:
        train: Training shards, whose samples have "reasoning": a glob, a folder or a brace range.
        val: Held-out shards, the same way.
        batch: Demonstrations a step over all ranks.
        epochs: Passes over the demonstrations.
        shuffle: Samples in the shuffle buffer (undecoded bytes).
        workers: Processes a rank that decode and encode; 0 does it in the training process.
        val_queries: Held-out paired queries to evaluate, null for all.
        val_batch: Queries decoded together in evaluation.
    """

    def __init__(
        self,
        train: str,
        val: str,
        batch: int = 32,
        epochs: int = 1,
        shuffle: int = 1000,
        workers: int = 0,
        val_queries: int | None = 512,
        val_batch: int = 64,
    ) -> None:
        super().__init__()
        self.train, self.val, self.batch, self.epochs = train, val, batch, epochs
        self.shuffle, self.workers = shuffle, workers
        self.val_queries, self.val_batch = val_queries, val_batch
        self.start = 0

    def setup(self, stage: str) -> None:
        """Checks every shard and counts the demonstrations; UserError names what is missing."""
        ranks = self.trainer.world_size
        if self.batch < 1 or self.batch % ranks:
            raise UserError(f"data.batch is {self.batch}, must be a multiple of the {ranks} ranks")
        samples = map(read_sample, read_shards(find_shards(self.train)))
        self.total_steps = self.epochs * sum(len(demonstrate(sample)) for sample in samples) // self.batch
        if not self.total_steps:
            raise UserError(f"data.train: fewer demonstrations than data.batch {self.batch}; lower it")
        if not take_stock(find_shards(self.val))["paired"]:
            raise UserError(f"data.val: {self.val!r} holds no paired sample to evaluate on")

    def train_dataloader(self) -> DataLoader:
        dataset = Steps(
            find_shards(self.train),
            self.batch,
            self.total_steps,
            run_seed(),
            self.shuffle,
            self.trainer.global_rank,
            self.trainer.world_size,
            self.start,
        )
        encode = partial(encode_demonstrations, encoder=self.trainer.lightning_module.encoder)
        return DataLoader(
            dataset,
            batch_size=None,
            collate_fn=encode,
            num_workers=self.workers,
            multiprocessing_context="spawn" if self.workers else None,
        )

    def val_dataloader(self) -> DataLoader:
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        held_out = HeldOut(find_shards(self.val), self.val_queries, self.val_batch, rank, ranks)
        encoder = self.trainer.lightning_module.encoder
        encode = partial(encode_all, encoder=encoder, streams=(GROUNDED, TEXTUAL))
        return DataLoader(held_out, batch_size=None, collate_fn=encode)

    def state_dict(self) -> dict:
        return {"steps": self.trainer.fit_loop.epoch_loop.batch_progress.total.processed}

    def load_state_dict(self, state: dict) -> None:
        self.start = state["steps"]


class Steps(IterableDataset):
    """This rank's demonstrations of every step from `start` to `steps`."""

    def __init__(
        self,
        shards: list[str],
        batch: int,
        steps: int,
        seed: int,
        shuffle: int,
        rank: int = 0,
        ranks: int = 1,
        start: int = 0,
    ) -> None:
        self.shards, self.batch, self.steps, self.seed, self.shuffle = shards, batch, steps, seed, shuffle
        self.rank, self.ranks, self.start = rank, ranks, start

    def __iter__(self) -> Iterator[list[Demonstration]]:
        worker = get_worker_info()
        readers, reader = (worker.num_workers, worker.id) if worker else (1, 0)
        demonstrations = self._demonstrations()
        for step in range(self.steps):
            batch = list(islice(demonstrations, self.batch))
            if step >= self.start and (step - self.start) % readers == reader:
                yield batch[self.rank :: self.ranks]

    def _demonstrations(self) -> Iterator[Demonstration]:
        for epoch in count():
            order = list(self.shards)
            random.Random(derive_seed(self.seed, "shards", epoch)).shuffle(order)
            samples = map(read_sample, read_shards(order))
            every = (demonstration for sample in samples for demonstration in demonstrate(sample))
            seed = derive_seed(self.seed, "demonstrations", epoch) % 2**31
            yield from wds.detshuffle(bufsize=self.shuffle, initial=self.shuffle, seed=seed).run(every)


def demonstrate(sample: Sample) -> list[Demonstration]:
    """One for each reasoning text; UserError if there is none, or boxes are shown to a sample
    that has no gold ones."""
    unknown = sorted(sample.reasoning.keys() - {GROUNDED, TEXTUAL})
    if not sample.reasoning or unknown:
        raise UserError(f'sample {sample.id}: "reasoning" needs "grounded" or "textual" text to imitate')
    if GROUNDED in sample.reasoning and sample.kind == "single":
        raise UserError(f'sample {sample.id}: a single sample has no grounded "reasoning"; make it "paired"')
    streams = {GROUNDED: GROUNDED, TEXTUAL: SINGLE if sample.kind == "single" else TEXTUAL}
    return [Demonstration(sample, streams[name]) for name in sorted(sample.reasoning)]
