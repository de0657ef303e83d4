"""Shards on disk: finding them, writing them, and taking stock of them at set-up.

A shard is `NAME-000000.tar`, an ordinary WebDataset tar: `KEY.json` with the fields of
`ivgr.data.sample.Sample` and `KEY.jpg|png|webp` (`KEY.0.jpg`, … for several) beside it.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import braceexpand
import webdataset as wds

from ivgr.data.sample import Sample, read_sample
from ivgr.errors import UserError


def find_shards(pattern: str) -> list[str]:
    """The shards that `pattern` names, sorted: a glob ("data/train-*.tar"), a folder or a
    brace range ("data/train-{000000..000007}.tar")."""
    paths: list[str] = []
    for part in braceexpand.braceexpand(pattern):
        path = Path(part)
        if path.is_dir():
            paths += map(str, path.glob("*.tar"))
        elif path.exists():
            paths.append(str(path))
        else:
            paths += map(str, path.parent.glob(path.name) if path.parent.is_dir() else ())
    if not paths:
        raise UserError(f"no shard matches {pattern!r}; check the path, or make some with `ivgr synth`")
    return sorted(set(paths))


def write_shards(folder: Path, name: str, samples: Iterable[Sample], per_shard: int) -> list[Path]:
    """Writes `samples` as folder/NAME-000000.tar, … with `per_shard` a piece; a shard
    appears under its name only when it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    writer = None
    for index, sample in enumerate(samples):
        if index % per_shard == 0:
            _close(writer, written)
            written.append(folder / f"{name}-{len(written):06d}.tar")
            writer = wds.TarWriter(f"{written[-1]}.part", mtime=0, user="ivgr", group="ivgr")
        writer.write(_entry(f"{index:08d}", sample))
    _close(writer, written)
    return written


def _close(writer: wds.TarWriter | None, written: list[Path]) -> None:
    if writer is not None:
        writer.close()
        os.replace(f"{written[-1]}.part", written[-1])


def _entry(key: str, sample: Sample) -> dict:
    fields = {name: value for name, value in vars(sample).items() if name != "images" and value}
    entry = {"__key__": key, "json": json.dumps(fields).encode()}
    for index, data in enumerate(sample.images):
        entry["jpg" if len(sample.images) == 1 else f"{index}.jpg"] = data
    return entry


def read_shards(shards: list[str]) -> Iterable[dict]:
    """The raw entries of `shards` in order, images undecoded."""
    return iter(wds.DataPipeline(wds.SimpleShardList(shards), wds.tarfile_to_samples()))


def take_stock(shards: list[str]) -> Counter:
    """Checks every sample of `shards` and counts them by kind; a broken one is a UserError."""
    counts: Counter = Counter()
    for entry in read_shards(shards):
        counts[read_sample(entry).kind] += 1
    if not counts:
        raise UserError(f"{shards[0]}: the shards hold no sample")
    return counts
