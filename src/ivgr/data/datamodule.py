"""Shards → queries, as a LightningDataModule whose progress is saved in checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from ivgr.core.checkpoint_file import PLAIN
from ivgr.core.errors import UserError
from ivgr.core.lightning_private import finished_iterations
from ivgr.core.metric import ValidationMetric
from ivgr.core.prompts import PAIRED, check_paired
from ivgr.core.rejection import Rejection
from ivgr.core.sample import KINDS
from ivgr.core.seeding import run_seed
from ivgr.core.settings import NonNegativeInt, PositiveFloat, PositiveInt, Share, checked
from ivgr.data.dataloader import make_loader
from ivgr.data.encode import Batch, QueryEncoder, encode_batch
from ivgr.data.load_balancing import RankAssignment
from ivgr.data.quarantine import Quarantine
from ivgr.data.shards import ShardedSample, find_shards, validate_shards
from ivgr.data.stream import BatchComposition, SampleStream, WeightedSource
from ivgr.data.validation_stream import HeldOut


@checked("data.train: ")
@dataclass(frozen=True, kw_only=True)
class Source:
    """One of several sources of training samples."""

    path: str | list[str]
    """Its shards: a glob, a folder, a brace range or a URL; or a list of such."""

    weight: PositiveFloat = 1.0
    """Its share of the queries of each kind that it holds, relative to the other sources."""


@checked("data.")
class ShardDataModule(L.LightningDataModule):
    """Prompts for training and held-out queries from WebDataset shards.

    Args:
        train: Training shards: a glob, a folder, a brace range or a URL (http(s)://, s3://); or
            several sources, a list of {path, weight}.
        val: Held-out shards: one path, or a list of such.
        prompts: Prompts per iteration, over all ranks; a paired query counts once per stream.
        paired_ratio: Share of prompts that belong to paired queries.
        streams: Streams that paired queries are trained in: grounded, textual or both.
        shuffle: Samples in each reader's shuffle buffer (undecoded bytes).
        workers: Reader processes per rank; 0 reads in the training process.
        shards_by_rank: Each rank reads its own part of the shards, where otherwise every rank reads
            all and decodes its part: less to read, but what an iteration draws then depends on
            the number of ranks, a run resumes on as many only, and nothing balances them.
        expected_response: Tokens of all responses that a query is expected to get in one stream, by
            which queries are dealt to ranks.
        val_queries: Held-out paired queries to evaluate, null for all.
        val_batch: Queries decoded together in evaluation.
        max_rejected: Largest share of samples that may be broken before training stops.
        allow_pipe: Let a path "pipe:COMMAND" run a shell command.
        validation_metrics: Figures of held-out responses beside those that are always there.
    """

    trainer: L.Trainer  # pyright: ignore[reportIncompatibleVariableOverride]  Lightning sets it before any hook

    # The shape of what a checkpoint keeps.
    state_shape = {
        "iterations": int,
        "order": {str: PLAIN},
        "quarantine?": {"counts": {str: int}, "seen": int},
    }

    def __init__(
        self,
        train: str | list[Source],
        val: str | list[str],
        prompts: PositiveInt = 512,
        paired_ratio: Share = 0.9,
        streams: Sequence[str] = PAIRED,
        shuffle: NonNegativeInt = 1000,
        workers: NonNegativeInt = 0,
        shards_by_rank: bool = False,
        expected_response: PositiveInt = 1500,
        val_queries: PositiveInt | None = 512,
        val_batch: PositiveInt = 64,
        max_rejected: Share = 0.01,
        allow_pipe: bool = False,
        validation_metrics: Sequence[ValidationMetric] = (),
    ) -> None:
        super().__init__()
        self.validation_metrics = tuple(validation_metrics)
        self.train = train
        self.val = val
        self.prompts = prompts
        self.paired_ratio = paired_ratio
        self.shuffle = shuffle
        self.workers = workers
        self.streams = check_paired(streams)
        self.shards_by_rank = shards_by_rank
        self.expected_response = expected_response
        self.val_queries = val_queries
        self.val_batch = val_batch
        self.max_rejected = max_rejected
        self.allow_pipe = allow_pipe
        self.start = 0

    def setup(self, stage: str) -> None:
        """Checks every shard; UserError names what is missing or broken."""
        rank, root = self.trainer.global_rank, Path(self.trainer.default_root_dir)
        self.listed = root / ("quarantine.jsonl" if rank == 0 else f"quarantine.{rank}.jsonl")
        self.quarantine = Quarantine(self.listed if rank == 0 else None, self.max_rejected)
        if stage == "fit":
            self._check_train()
        stock = validate_shards(self._find(self.val), self.max_rejected)
        if not stock["paired"]:
            raise UserError(f"data.val: {self.val!r} holds no paired sample to evaluate on")

    def _check_train(self) -> None:
        ranks = self._parts()[1]
        if self.prompts % ranks:
            raise UserError(
                f"data.prompts is {self.prompts}, must be a multiple of the {ranks} ranks with "
                "data.shards_by_rank"
            )
        self.mix = BatchComposition.of(self.prompts // ranks, self.paired_ratio, len(self.streams))
        readers = ranks * max(self.workers, 1)
        self.feeds = [self._take_in(source, readers) for source in self._sources()]
        for kind, wanted in (("paired", self.mix.paired), ("single", self.mix.single)):
            if wanted and not any(kind in feed.kinds for feed in self.feeds):
                raise UserError(
                    f"data.train: no {kind!r} sample, but data.paired_ratio {self.paired_ratio} asks for "
                    f"{wanted} an iteration; set it to {0.0 if kind == 'paired' else 1.0}"
                )

    def _parts(self) -> tuple[int, int]:
        """Returns which part of the shards this rank reads, and of how many parts."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.shards_by_rank else (0, 1)

    def _sources(self) -> list[Source]:
        sources = self.train if isinstance(self.train, list) else [Source(path=self.train)]
        if not sources:
            raise UserError("data.train: give at least one source")
        return sources

    def _take_in(self, source: Source, readers: int) -> WeightedSource:
        shards = self._find(source.path)
        if len(shards) < readers:
            raise UserError(
                f"data.train: {len(shards)} shards for {readers} readers (ranks x workers) in "
                f"{source.path!r}; write more, smaller shards or lower data.workers"
            )
        stock = validate_shards(shards, self.max_rejected)
        return WeightedSource(shards, source.weight, tuple(kind for kind in KINDS if stock[kind]))

    def _find(self, path: str | list[str]) -> list[str]:
        return find_shards(path, self.allow_pipe)

    def train_dataloader(self) -> DataLoader:
        if self.start == 0:
            self.quarantine.forget()
        stream = SampleStream(
            self.feeds, self.mix, run_seed(), self.shuffle, *self._parts(), start=self.start
        )
        spread = RankAssignment(
            self.trainer.global_rank,
            self.trainer.world_size,
            self.shards_by_rank,
            self._module.update.mini_batches,
            self.expected_response,
            self.streams,
        )
        encode = partial(encode_batch, encoder=self._encoder(), streams=self.streams, spread=spread)
        return make_loader(stream, encode, self.workers)

    def val_dataloader(self) -> DataLoader:
        # A count of its own, so that too large a share shows before training, not after.
        return self._held_out_loader(self.val_queries, Quarantine(self.listed, self.max_rejected))

    def first_held_out(self, queries: int) -> DataLoader:
        """The first of what `val_dataloader` gives; what is rejected is listed by that."""
        limit = queries if self.val_queries is None else min(queries, self.val_queries)
        return self._held_out_loader(limit, Quarantine(None, self.max_rejected))

    def _held_out_loader(self, limit: int | None, quarantine: Quarantine) -> DataLoader:
        held_out = HeldOut(
            self._find(self.val),
            limit,
            self.val_batch,
            self.trainer.global_rank,
            self.trainer.world_size,
        )
        return make_loader(held_out, partial(self._encode_held_out, quarantine), 0)

    def _encode_held_out(self, quarantine: Quarantine, drawn: list[ShardedSample | Rejection]) -> Batch:
        batch = encode_batch(drawn, self._encoder())
        quarantine.add(batch.rejected, batch.seen)
        return batch

    @property
    def _module(self) -> Any:
        """The module that is trained; it has `update` (settings) and an `encoder`."""
        return self.trainer.lightning_module

    def _encoder(self) -> QueryEncoder:
        return self._module.encoder

    def state_dict(self) -> dict:
        """Returns the position in the data: finished iterations and what their order depends on."""
        done = finished_iterations(self.trainer)
        return {"iterations": done, "order": self._order(), "quarantine": self.quarantine.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        order = self._order()
        for name in order | state["order"]:
            saved, own = state["order"].get(name), order.get(name)
            if saved != own:
                raise UserError(
                    f"checkpoint: it was made with {name} {saved!r}, this run has {own!r}; "
                    "resume with the same setting or start a new run"
                )
        self.start = state["iterations"]
        self.quarantine.load_state_dict(state.get("quarantine", self.quarantine.state_dict()))

    def _order(self) -> dict:
        sources = self._sources()
        return {
            "seed_everything": run_seed(),
            "data.prompts": self.prompts,
            "data.paired_ratio": self.paired_ratio,
            "data.streams": list(self.streams),
            "data.shuffle": self.shuffle,
            "data.workers": self.workers,
            "the shards of data.train": [
                Path(path).name for source in sources for path in self._find(source.path)
            ],
            "the weights of data.train": [source.weight for source in sources],
            "data.shards_by_rank": self.shards_by_rank,
            "ranks": self._parts()[1],
        }
