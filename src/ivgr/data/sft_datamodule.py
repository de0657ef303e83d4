"""Cold-start shards → demonstrations: every text under `reasoning` is one to imitate, so the
ratio of grounded to textual ones is that of the shards (see `ivgr distill`)."""

import random
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count, islice

import webdataset as wds
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ivgr.core.errors import UserError
from ivgr.core.metric import ValidationMetric
from ivgr.core.prompts import SINGLE, TEXTUAL
from ivgr.core.rejection import RejectedSample, Rejection
from ivgr.core.sample import Sample
from ivgr.core.seeding import derive_seed, run_seed
from ivgr.core.settings import NonNegativeInt, PositiveInt, checked
from ivgr.data.dataloader import make_loader
from ivgr.data.datamodule import ShardDataModule
from ivgr.data.sft_encode import Demonstration, encode_demonstrations
from ivgr.data.shards import ShardedSample, load_images, read_heads, validate_shards
from ivgr.distributed.collectives import gather_lists


@checked("data.")
class ColdStart(ShardDataModule):
    """Demonstrations for `ivgr.SFT`, and held-out questions for the final figures.

    Args:
        train: Shards of samples with "reasoning": a glob, a folder or a brace range.
        val: Held-out shards, the same way.
        steps: Optimizer steps; null goes through the shards `epochs` times.
        epochs: Passes over the demonstrations, without `steps`.
        batch: Demonstrations per step, over all ranks.
        shuffle: Demonstrations in the shuffle buffer (undecoded bytes).
        workers: Processes per rank that decode and encode; 0 does so in the training process.
        val_queries: Held-out paired queries to evaluate, null for all.
        val_batch: Queries decoded together in evaluation.
        validation_metrics: As of `ShardDataModule`.
    """

    def __init__(
        self,
        train: str,
        val: str,
        steps: PositiveInt | None = None,
        epochs: PositiveInt = 1,
        batch: PositiveInt = 32,
        shuffle: NonNegativeInt = 1000,
        workers: NonNegativeInt = 0,
        val_queries: PositiveInt | None = 512,
        val_batch: PositiveInt = 64,
        validation_metrics: Sequence[ValidationMetric] = (),
    ) -> None:
        super().__init__(train, val, shuffle=shuffle, workers=workers, validation_metrics=validation_metrics)
        self.val_queries = val_queries
        self.val_batch = val_batch
        self.shards = train
        self.total_steps = steps or 0  # 0 until `setup` has counted the demonstrations
        self.epochs = epochs
        self.batch = batch

    def _check_train(self) -> None:
        if self.batch % self.trainer.world_size:
            raise UserError(
                f"data.batch is {self.batch}, must be a multiple of the {self.trainer.world_size} ranks"
            )
        shards = self._find(self.shards)
        validate_shards(shards)
        count = self._count(shards)
        if not count:
            raise UserError(
                f'data.train: no sample of {self.train!r} has "reasoning"; write some with `ivgr distill`'
            )
        if not self.total_steps:
            self.total_steps = max(self.epochs * count // self.batch, 1)

    def _count(self, shards: list[str]) -> int:
        """The demonstrations in `shards`, of which each rank reads its part; RejectedSample, on all
        ranks, if one is broken. No image is read."""
        part = shards[self.trainer.global_rank :: self.trainer.world_size]
        found = gather_lists([_count_texts(item) for item in read_heads(part)])
        if broken := next((one for one in found if isinstance(one, Rejection)), None):
            raise RejectedSample(broken.message, broken.reason)
        return sum(found)

    def train_dataloader(self) -> DataLoader:
        dataset = DemonstrationStream(
            self._find(self.shards),
            self.batch,
            self.total_steps,
            run_seed(),
            self.shuffle,
            self.trainer.global_rank,
            self.trainer.world_size,
            self.start,
        )
        return make_loader(dataset, partial(encode_demonstrations, encoder=self._encoder()), self.workers)

    def _order(self) -> dict:
        order = super()._order() | {"data.batch": self.batch}
        apart = ("data.prompts", "data.paired_ratio", "data.workers", "data.shards_by_rank", "ranks")
        return {name: value for name, value in order.items() if name not in apart}


class DemonstrationStream(IterableDataset):
    """Yields this rank's share of a batch for each of the steps from `start` to `steps`, in an
    order that depends on `seed` alone; workers take steps in turn."""

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
        self.shards = shards
        self.batch = batch
        self.steps = steps
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.ranks = ranks
        self.start = start

    def __iter__(self) -> Iterator[list[Demonstration]]:
        worker = get_worker_info()
        first, every = (worker.id, worker.num_workers) if worker else (0, 1)
        endless = self._demonstrations()
        batches = (list(islice(endless, self.batch)) for _ in range(self.steps))
        for batch in islice(batches, self.start + first, None, every):
            yield [_with_images(*drawn) for drawn in batch[self.rank :: self.ranks]]

    def _demonstrations(self) -> Iterator[tuple[ShardedSample, str]]:
        """Endless: samples whose images are not loaded, each with one of its streams."""
        for epoch in count():
            order = list(self.shards)
            random.Random(derive_seed(self.seed, "shards", epoch)).shuffle(order)
            found = (
                (item, _stream_of(item.sample, name))
                for item in map(_unbroken, read_heads(order))
                for name in item.sample.reasoning
            )
            seed = derive_seed(self.seed, "demonstrations", epoch) % 2**31
            yield from wds.detshuffle(bufsize=self.shuffle, initial=self.shuffle, seed=seed).run(found)


def _count_texts(item: ShardedSample | Rejection) -> int | Rejection:
    return item if isinstance(item, Rejection) else len(item.sample.reasoning)


def _unbroken(item: ShardedSample | Rejection) -> ShardedSample:
    if isinstance(item, Rejection):
        raise RejectedSample(item.message, item.reason)
    return item


def _with_images(item: ShardedSample, stream: str) -> Demonstration:
    return Demonstration(_unbroken(load_images(item)).sample, stream)


def _stream_of(sample: Sample, name: str) -> str:
    return SINGLE if name == TEXTUAL and sample.kind == "single" else name
