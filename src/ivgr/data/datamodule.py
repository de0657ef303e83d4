"""Shards → queries, as a LightningDataModule whose progress is saved in checkpoints."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import lightning as L
import torch
from torch.utils.data import DataLoader, IterableDataset

from ivgr.data.encode import QueryEncoder
from ivgr.data.prompts import GROUNDED, TEXTUAL, streams_of
from ivgr.data.sample import Sample, read_sample
from ivgr.data.shards import find_shards, read_shards, take_stock
from ivgr.data.stream import Mix, SampleStream
from ivgr.errors import UserError
from ivgr.query import Query
from ivgr.seeding import run_seed
from ivgr.world.write import World, write_world


class ShardDataModule(L.LightningDataModule):
    """Prompts for training and held-out queries from WebDataset shards.

    Args:
        train: Training shards: a glob, a folder or a brace range.
        val: Held-out shards, the same way.
        prompts: Prompts an iteration over all ranks; a paired query counts two.
        paired_ratio: Share of prompts that belong to paired queries.
        shuffle: Samples in each reader's shuffle buffer (undecoded bytes).
        workers: Reader processes a rank; 0 reads in the training process.
        val_queries: Held-out paired queries to evaluate, null for all.
        val_batch: Queries decoded together in evaluation.
    """

    def __init__(
        self,
        train: str,
        val: str,
        prompts: int = 512,
        paired_ratio: float = 0.9,
        shuffle: int = 1000,
        workers: int = 0,
        val_queries: int | None = 512,
        val_batch: int = 64,
    ) -> None:
        super().__init__()
        self.train, self.val, self.prompts, self.paired_ratio = train, val, prompts, paired_ratio
        self.shuffle, self.workers = shuffle, workers
        self.val_queries, self.val_batch = val_queries, val_batch
        self.start = 0

    def setup(self, stage: str) -> None:
        """Checks every shard; UserError names what is missing or broken."""
        if stage == "fit":
            self._check_train(find_shards(self.train))
        stock = take_stock(find_shards(self.val))
        if not stock["paired"]:
            raise UserError(f"data.val: {self.val!r} holds no paired sample to evaluate on")

    def _check_train(self, shards: list[str]) -> None:
        ranks = self.trainer.world_size
        if self.prompts % ranks:
            raise UserError(f"data.prompts is {self.prompts}, must be a multiple of the {ranks} ranks")
        self.mix = Mix.of(self.prompts // ranks, self.paired_ratio)
        readers = ranks * max(self.workers, 1)
        if len(shards) < readers:
            raise UserError(
                f"data.train: {len(shards)} shards for {readers} readers (ranks x workers); "
                "write more, smaller shards or lower data.workers"
            )
        stock = take_stock(shards)
        for kind, wanted in (("paired", self.mix.paired), ("single", self.mix.single)):
            if wanted and not stock[kind]:
                raise UserError(
                    f"data.train: no {kind!r} sample, but data.paired_ratio {self.paired_ratio} asks for "
                    f"{wanted} an iteration; set it to {0.0 if kind == 'paired' else 1.0}"
                )

    def train_dataloader(self) -> DataLoader:
        stream = SampleStream(
            find_shards(self.train),
            self.mix,
            run_seed(),
            self.shuffle,
            self.trainer.global_rank,
            self.trainer.world_size,
            self.start,
        )
        encode = partial(encode_all, encoder=self._encoder())
        return _loader(stream, encode, self.workers)

    def val_dataloader(self) -> DataLoader:
        held_out = HeldOut(
            find_shards(self.val),
            self.val_queries,
            self.val_batch,
            self.trainer.global_rank,
            self.trainer.world_size,
        )
        encode = partial(encode_all, encoder=self._encoder(), streams=(GROUNDED, TEXTUAL))
        return _loader(held_out, encode, 0)

    def _encoder(self) -> QueryEncoder:
        return self.trainer.lightning_module.encoder

    def state_dict(self) -> dict:
        """Where the data stands: iterations done and what their order depends on."""
        done = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed
        return {"iterations": done, "order": self._order()}

    def load_state_dict(self, state: dict) -> None:
        for name, saved in state["order"].items():
            if self._order()[name] != saved:
                raise UserError(
                    f"checkpoint: it was made with {name} {saved!r}, this run has {self._order()[name]!r}; "
                    "resume with the same setting or start a new run"
                )
        self.start = state["iterations"]

    def _order(self) -> dict:
        return {
            "seed_everything": run_seed(),
            "data.prompts": self.prompts,
            "data.paired_ratio": self.paired_ratio,
            "data.shuffle": self.shuffle,
            "data.workers": self.workers,
            "the shards of data.train": [Path(path).name for path in find_shards(self.train)],
            "ranks": self.trainer.world_size,
        }


class TinyWorld(ShardDataModule):
    """The tiny world's shards, drawn on first use under trainer.default_root_dir/world.

    Args:
        train_count: Scenes drawn for training.
        val_count: Scenes drawn for evaluation.
        world_seed: Seed of the drawing; independent of the run's seed.
        settings: Arguments of `ShardDataModule` other than train and val.
    """

    def __init__(
        self, train_count: int = 2000, val_count: int = 640, world_seed: int = 0, **settings
    ) -> None:
        super().__init__(train="", val="", **settings)
        self.counts = {"train": train_count, "val": val_count}
        self.world_seed = world_seed

    def prepare_data(self) -> None:
        for split, count in self.counts.items():
            write_world(self._folder() / split, World(split, count, self.world_seed))

    def setup(self, stage: str) -> None:
        self.train, self.val = str(self._folder() / "train"), str(self._folder() / "val")
        super().setup(stage)

    def _folder(self) -> Path:
        return Path(self.trainer.default_root_dir) / "world"


class HeldOut(IterableDataset):
    """Batches of the first `limit` paired samples, in shard order, dealt out to ranks."""

    def __init__(self, shards: list[str], limit: int | None, batch: int, rank: int, ranks: int) -> None:
        self.shards, self.limit, self.batch = shards, limit, batch
        self.rank, self.ranks = rank, ranks

    def __iter__(self) -> Iterator[list[Sample]]:
        samples = (read_sample(entry) for entry in read_shards(self.shards))
        paired = [sample for sample in samples if streams_of(sample.kind) == (GROUNDED, TEXTUAL)]
        mine = paired[: self.limit][self.rank :: self.ranks]
        for start in range(0, len(mine), self.batch):
            yield mine[start : start + self.batch]


def encode_all(
    samples: list[Sample], encoder: QueryEncoder, streams: tuple[str, ...] | None = None
) -> list[Query]:
    return [encoder(sample, streams) for sample in samples]


def _loader(dataset: IterableDataset, encode: Callable, workers: int) -> DataLoader:
    context = "spawn" if workers else None
    return DataLoader(
        dataset,
        batch_size=None,
        collate_fn=encode,
        num_workers=workers,
        multiprocessing_context=context,
        generator=torch.Generator(),
    )
