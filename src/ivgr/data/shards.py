"""Shards: finding them, writing them, reading them and taking stock of them at set-up.

A shard is `NAME-000000.tar`, an ordinary WebDataset tar: `KEY.json` with the fields of
`ivgr.core.sample.Sample` and `KEY.jpg|png|webp` (`KEY.0.jpg`, … for several) beside it.
What cannot be used comes out as a `Rejection` in its place.
"""

import glob
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import braceexpand
import webdataset as wds

from ivgr.core.atomic_files import PART, file_to_write
from ivgr.core.errors import UserError
from ivgr.core.rejection import RejectedSample, Rejection, check_share
from ivgr.core.sample import KINDS, Sample, read_sample
from ivgr.data.remote import PIPE, is_url, list_urls, size_of, sizes_beside
from ivgr.data.shard_index import ShardSize
from ivgr.data.tar import UNREACHABLE, load, read_shard


def find_shards(pattern: str | list[str], allow_pipe: bool = False) -> list[str]:
    """The shards that `pattern` names, sorted: a glob ("data/train-*.tar"), a folder, a brace
    range ("data/train-{000000..000007}.tar"), a URL in the same ways (globs and folders where
    the file system can list), or a list of such. UserError if there is none, if a local one of
    a brace range is missing, or for a `pipe:` that is not allowed."""
    patterns = [pattern] if isinstance(pattern, str) else pattern
    return sorted({path for one in patterns for path in _find(one, allow_pipe)})


def _find(pattern: str, allow_pipe: bool) -> Iterator[str]:
    if pattern.startswith(PIPE) and not allow_pipe:
        raise UserError(
            f"{pattern!r}: runs a shell command; set data.allow_pipe true if you trust it, or write a URL"
        )
    try:
        parts = list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise UserError(f"{pattern!r}: {error}; close the brace") from error
    for part in parts:
        found = _find_part(part)
        if not found:
            missing = f" (nothing at {part})" if len(parts) > 1 else ""
            raise UserError(
                f"no shard matches {pattern!r}{missing}; check the path, or make some with `ivgr synth`"
            )
        yield from found


def _find_part(part: str) -> list[str]:
    if part.startswith(PIPE):
        return [part]
    if is_url(part):
        return list_urls(part)
    found = glob.glob(f"{part}/*.tar") if Path(part).is_dir() else glob.glob(part)
    return [f"./{path}" if is_url(path) else path for path in found]  # a file is never a command


def shard_path(folder: Path, name: str, number: int) -> Path:
    return folder / f"{name}-{number:06d}.tar"


def write_shards(folder: Path, name: str, samples: Iterable[Sample], per_shard: int) -> list[Path]:
    """Writes `samples` as folder/NAME-000000.tar, … with `per_shard` a piece; a shard
    appears under its name only when it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    samples = iter(samples)
    for sample in samples:
        path = shard_path(folder, name, len(written))
        write_shard(path, chain([sample], islice(samples, per_shard - 1)), len(written) * per_shard)
        written.append(path)
    return written


def write_shard(path: Path, samples: Iterable[Sample], first: int) -> None:
    """Writes one shard whose keys count from `first`; it appears at `path` only when it is whole."""
    # An open file: WebDataset would run the name of one in a folder "pipe:…" as a command.
    with file_to_write(path) as file, wds.TarWriter(file, mtime=0, user="ivgr", group="ivgr") as writer:
        for index, sample in enumerate(samples, first):
            writer.write(_entry(f"{index:08d}", sample))


def _entry(key: str, sample: Sample) -> dict:
    fields = {name: value for name, value in vars(sample).items() if name != "images" and value}
    entry = {"__key__": key, "json": json.dumps(fields).encode()}
    for index, data in enumerate(sample.images):
        suffix = _suffix(data)
        entry[suffix if len(sample.images) == 1 else f"{index}.{suffix}"] = data
    return entry


def _suffix(image: bytes) -> str:
    """Returns the suffix that the first bytes imply; jpg if they imply none."""
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else "jpg"


def read_shards(shards: list[str]) -> Iterator[dict]:
    """The raw entries of `shards` in order, images undecoded; RejectedSample names a shard that
    is no whole tar."""
    for shard in shards:
        for entry in read_shard(shard):
            yield {name: load(value) for name, value in entry.items()}


@dataclass(frozen=True)
class ShardedSample:
    """A sample and where it lies; source is the index of its source among several."""

    sample: Sample
    shard: str
    key: str
    source: int | None = None

    @property
    def kind(self) -> str:
        return self.sample.kind


def read_samples(
    shards: list[str], kinds: tuple[str, ...] = ("", *KINDS)
) -> Iterator[ShardedSample | Rejection]:
    """The samples of `shards` in order, with a `Rejection` in the place of each broken one and
    of what a broken shard lacks; only those of `kinds`, where "" is a broken sample's whose kind
    is not known. The images of others are not read where that can be avoided."""
    return map(load_images, (item for item in read_heads(shards) if item.kind in kinds))


def load_images(item: ShardedSample | Rejection) -> ShardedSample | Rejection:
    """`item` with its images' bytes; a `Rejection` in its place if they are gone."""
    if isinstance(item, Rejection):
        return item
    try:
        images = tuple(map(load, item.sample.images))
    except OSError as error:
        message = f"{item.shard}: cannot be read any more ({error.strerror}); restore it"
        return Rejection("shard: unreadable", message, item.shard, item.key, item.sample.id, item.kind)
    return replace(item, sample=replace(item.sample, images=images))


def read_heads(shards: list[str]) -> Iterator[ShardedSample | Rejection]:
    """The samples of `shards` as of `read_samples`, of all kinds, their images not yet read where that
    can be put off (see `load_images`)."""
    for shard in shards:
        try:
            for entry in read_shard(shard):
                yield _locate(entry, shard)
        except RejectedSample as error:
            yield Rejection.of(error, shard)


def _locate(entry: dict, shard: str) -> ShardedSample | Rejection:
    try:
        return ShardedSample(read_sample(entry), shard, entry["__key__"])
    except RejectedSample as error:
        return Rejection.of(error, shard, entry["__key__"])


def validate_shards(shards: list[str], max_rejected: float = 0.01) -> Counter:
    """Checks every sample of `shards` and counts the good ones by kind. A shard that the
    sizes.json beside it lists with the bytes it really has is not read. UserError for a shard
    out of reach, and when more than `max_rejected` of all samples are broken."""
    kinds, reasons, messages = Counter(), Counter(), []
    for item in _take_stock(shards):
        if isinstance(item, ShardSize):
            kinds.update(paired=item.paired, single=item.single)
        elif isinstance(item, ShardedSample):
            kinds[item.kind] += 1
        elif item.reason == UNREACHABLE:
            raise UserError(item.message)
        else:
            reasons[item.reason] += 1
            messages.append(item.message)
    if messages:
        check_share(reasons, kinds.total() + len(messages), max_rejected, messages[0])
    if not kinds.total():
        raise UserError(f"{shards[0]}: the shards hold no sample")
    return kinds


def _take_stock(shards: list[str]) -> Iterator[ShardSize | ShardedSample | Rejection]:
    """Returns what sizes.json says about a shard, or what reading the shard gives."""
    known: dict[str, dict[str, ShardSize]] = {}
    for shard in shards:
        folder, _, name = shard.split("?")[0].rpartition("/")
        if folder not in known:
            known[folder] = sizes_beside(shard)
        size = known[folder].get(name)
        if size is not None and _same_size(shard, size.bytes):
            yield size
        else:
            yield from read_heads([shard])


def _same_size(shard: str, expected: int) -> bool:
    try:
        return size_of(shard) == expected
    except Exception as error:  # each file system has its own
        raise UserError(f"{shard}: cannot be reached ({type(error).__name__}: {error})") from error


SHARDS = "train"


def replace_shards(folder: Path, samples: Iterable[Sample], per_shard: int) -> list[Path]:
    """Writes train-000000.tar, … in place of what an earlier call left in `folder`."""
    for path in (*folder.glob(f"{SHARDS}-*.tar"), *folder.glob(f"{SHARDS}-*.tar{PART}")):
        path.unlink()
    return write_shards(folder, SHARDS, samples, per_shard)


def refuse_overlap(shards: str, folder: Path) -> None:
    """UserError if `folder`, which is to be written, is where `shards` lie."""
    if any(Path(path).resolve().parent == folder.resolve() for path in find_shards(shards)):
        raise UserError(f"{folder}: the shards to be read lie there; choose another folder to write to")
