"""Rows → shards, in parallel and resumable; sizes.json and rejected.jsonl when all are done.

The shards depend on the source and the settings alone: not on the number of workers, nor on
how often the pack was killed.
"""

import glob
import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import cast

from ivgr.core.atomic_files import PART, file_to_write
from ivgr.core.printable import in_line
from ivgr.core.sample import Sample
from ivgr.data.shard_index import NAME as SIZES
from ivgr.data.shard_index import ShardSize, write_sizes
from ivgr.data.shards import shard_path, write_shard
from ivgr.tools.packing_data.admit import Verdict
from ivgr.tools.packing_data.pack_state import PackState
from ivgr.tools.packing_data.source_rows import Row

REPORT = "rejected.jsonl"


@dataclass(frozen=True)
class Target:
    """Shards folder/NAME-000000.tar, … of per_shard samples."""

    folder: Path
    name: str
    per_shard: int

    def shard(self, number: int) -> Path:
        return shard_path(self.folder, self.name, number)

    def written(self) -> list[Path]:
        """Shards and parts of shards that lie there."""
        pattern = f"{glob.escape(self.name)}-{'[0-9]' * 6}.tar"
        return [*self.folder.glob(pattern), *self.folder.glob(f"{pattern}{PART}")]


@dataclass
class Packer:
    """Carries one pack from rows to shards.

    admit turns a row into a verdict and is called from `workers` threads (decoding, shrinking
    and hashing leave the interpreter free); moved is told how many rows are done.
    """

    target: Target
    journal: PackState
    admit: Callable[[Row], Verdict]
    workers: int
    moved: Callable[[int], None] = lambda rows: None

    def pack(self, rows: Iterable[Row]) -> None:
        """Packs what is not packed yet of `rows`, which must be all of the source's."""
        self._keep_whole_shards()
        if not self.journal.finished:
            (self.target.folder / SIZES).unlink(missing_ok=True)
            self.number = len(self.journal.shards)
            self.rows = self.journal.rows
            self._write(islice(iter(rows), self.rows, None))
        named = {self.target.shard(number).name: size for number, size in enumerate(self.journal.shards)}
        write_sizes(self.target.folder, named)
        self._write_report()

    def _keep_whole_shards(self) -> None:
        """Shards that are as the journal says stay; from the first other one on, all are written anew."""
        for number, size in enumerate(self.journal.shards):
            if not _is_whole(self.target.shard(number), size):
                self.journal.forget_from(number)
                break
        known = {self.target.shard(number) for number in range(len(self.journal.shards))}
        for path in set(self.target.written()) - known:
            path.unlink()

    def _write(self, rows: Iterator[Row]) -> None:
        with ThreadPoolExecutor(self.workers) as pool:
            samples = self._accepted(in_order(self.admit, rows, pool, 2 * self.workers))
            for sample in samples:
                path, kinds = self.target.shard(self.number), Counter()
                piece = chain([sample], islice(samples, self.target.per_shard - 1))
                write_shard(path, _counted(piece, kinds), self.number * self.target.per_shard)
                size = ShardSize(kinds.total(), kinds["paired"], kinds["single"], *_fingerprint(path))
                self.journal.close_shard(self.number, self.rows, size)
                self.number += 1
        self.journal.finish(self.rows)

    def _accepted(self, verdicts: Iterator[Verdict]) -> Iterator[Sample]:
        """The samples, in order; what is rejected is put down."""
        for verdict in verdicts:
            self.rows += 1
            self.moved(self.rows)
            reason = verdict.reason
            if not reason and not self.journal.is_new(verdict.id, self.number):
                reason = f"duplicate id: {in_line(verdict.id)} was packed before"
            if reason:
                self.journal.reject(self.number, verdict.position, in_line(verdict.id), reason)
                continue
            for note in verdict.notes:
                self.journal.note(self.number, verdict.position, note)
            yield cast(Sample, verdict.sample)

    def _write_report(self) -> None:
        with file_to_write(self.target.folder / REPORT, "w") as file:
            for entry in self.journal.rejected():
                file.write(json.dumps(entry) + "\n")


def in_order(work: Callable, items: Iterable, pool: ThreadPoolExecutor, ahead: int) -> Iterator:
    """`work` of each item, in the items' order, at most `ahead` of them under way."""
    waiting: deque = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _counted(samples: Iterable[Sample], kinds: Counter) -> Iterator[Sample]:
    for sample in samples:
        kinds[sample.kind] += 1
        yield sample


def _fingerprint(path: Path) -> tuple[int, str]:
    """Bytes and sha256 of a file."""
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _is_whole(path: Path, size: ShardSize) -> bool:
    return path.exists() and path.stat().st_size == size.bytes and _fingerprint(path)[1] == size.sha256
