"""Shards on disk: finding them, writing them, and taking stock of them at set-up.

A shard is `NAME-000000.tar`, an ordinary WebDataset tar: `KEY.json` with the fields of
`ivgr.data.sample.Sample` and `KEY.jpg|png|webp` (`KEY.0.jpg`, … for several) beside it.
"""

import glob
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import braceexpand
import webdataset as wds

from ivgr.data.sample import Sample, read_sample
from ivgr.errors import UserError


def find_shards(pattern: str) -> list[str]:
    """The shards that `pattern` names, sorted: a glob ("data/train-*.tar"), a folder or a
    brace range ("data/train-{000000..000007}.tar"). UserError if there is none, or if one
    of a brace range is missing."""
    try:
        parts = list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise UserError(f"{pattern!r}: {error}; close the brace") from error
    paths: list[str] = []
    for part in parts:
        found = glob.glob(f"{part}/*.tar") if Path(part).is_dir() else glob.glob(part)
        if not found:
            missing = f" (nothing at {part})" if len(parts) > 1 else ""
            raise UserError(
                f"no shard matches {pattern!r}{missing}; check the path, or make some with `ivgr synth`"
            )
        paths += found
    return sorted(set(paths))


def write_shards(folder: Path, name: str, samples: Iterable[Sample], per_shard: int) -> list[Path]:
    """Writes `samples` as folder/NAME-000000.tar, … with `per_shard` a piece; a shard
    appears under its name only when it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    samples = iter(samples)
    for sample in samples:
        path = folder / f"{name}-{len(written):06d}.tar"
        write_shard(path, chain([sample], islice(samples, per_shard - 1)), len(written) * per_shard)
        written.append(path)
    return written


def write_shard(path: Path, samples: Iterable[Sample], first: int) -> None:
    """Writes one shard whose keys count from `first`; it appears at `path` only when it is whole."""
    writer = wds.TarWriter(f"{path}.part", mtime=0, user="ivgr", group="ivgr")
    for index, sample in enumerate(samples, first):
        writer.write(_entry(f"{index:08d}", sample))
    writer.close()
    os.replace(f"{path}.part", path)


def _entry(key: str, sample: Sample) -> dict:
    fields = {name: value for name, value in vars(sample).items() if name != "images" and value}
    entry = {"__key__": key, "json": json.dumps(fields).encode()}
    for index, data in enumerate(sample.images):
        suffix = _suffix(data)
        entry[suffix if len(sample.images) == 1 else f"{index}.{suffix}"] = data
    return entry


def _suffix(image: bytes) -> str:
    """By what the first bytes say; jpg where they say nothing."""
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else "jpg"


def read_shards(shards: list[str]) -> Iterator[dict]:
    """The raw entries of `shards` in order, images undecoded; UserError names a shard that
    is no whole tar."""
    for shard in shards:
        entries = iter(wds.DataPipeline(wds.SimpleShardList([shard]), wds.tarfile_to_samples()))
        while True:
            try:
                entry = next(entries)
            except StopIteration:
                break
            except (tarfile.TarError, OSError, EOFError, ValueError) as error:
                reason = str(error.args[0]) if error.args else type(error).__name__
                raise UserError(f"{shard}: no whole tar ({reason.splitlines()[0]}); write it anew") from error
            yield entry


def take_stock(shards: list[str]) -> Counter:
    """Checks every sample of `shards` and counts them by kind; a broken one is a UserError."""
    counts: Counter = Counter()
    for entry in read_shards(shards):
        counts[read_sample(entry).kind] += 1
    if not counts:
        raise UserError(f"{shards[0]}: the shards hold no sample")
    return counts
