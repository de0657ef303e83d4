"""Shards wherever they lie: a local path, a URL that fsspec knows (http://, s3://, …), or the
output of a shell command (`pipe:`, only where the user has allowed it).

In: the path of a shard. Out: its bytes, as a file that is read once from front to back.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.core import split_protocol

from ivgr.core.errors import UserError, install_hint
from ivgr.core.regular_files import open_file
from ivgr.data.shard_index import NAME, ShardSize, read_sizes

PIPE = "pipe:"
BROKEN_PIPE = (-13, 141)  # the reader had enough before the command did
NO_LISTING = ("http", "https")


def is_url(path: str) -> bool:
    return path.startswith(PIPE) or re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


@contextmanager
def open_shard(path: str, streamed: bool = False) -> Iterator[BinaryIO]:
    """The bytes at `path`. `streamed` asks an http server for all of them at once, which every
    server can do, instead of range by range, which survives a reader that takes its time."""
    if path.startswith(PIPE):
        with _open_pipe(path.removeprefix(PIPE)) as file:
            yield file
    elif is_url(path):
        http = split_protocol(path)[0] in NO_LISTING
        options: dict[str, Any] = {"block_size": 0} if streamed and http else {}
        with fsspec.open(path, "rb", **options) as file:
            yield cast(BinaryIO, file)
    else:
        with open_file(path) as file:
            yield file


@contextmanager
def _open_pipe(command: str) -> Iterator[BinaryIO]:
    with subprocess.Popen(command, shell=True, stdout=subprocess.PIPE) as process:
        yield cast(BinaryIO, process.stdout)
    if process.returncode and process.returncode not in BROKEN_PIPE:
        raise OSError(f"exit code {process.returncode}")


def list_urls(url: str) -> list[str]:
    """The shards that `url` names: itself, or what a glob or folder holds where the file system
    can list. UserError for a protocol that is not known or not installed, and a glob over http."""
    protocol = split_protocol(url)[0]
    whole = url.split("?")[0].endswith(".tar") and "*" not in url
    if protocol in NO_LISTING and "*" in url:
        raise UserError(
            f"{url!r}: http servers cannot list; write a brace range, NAME-{{000000..000007}}.tar"
        )
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        hint = f": {install_hint('s3')}" if protocol == "s3" else f" ({error})"
        raise UserError(f"{url!r}: a package for {protocol}:// is missing{hint}") from error
    except ValueError as error:
        raise UserError(f"{url!r}: {error}; write a path, http(s):// or s3://") from error
    if whole or protocol in NO_LISTING:
        return [url]
    try:
        found = system.glob(path if "*" in path else f"{path.rstrip('/')}/*.tar")
    except Exception as error:  # each file system has its own
        raise UserError(f"{url!r}: cannot be listed ({type(error).__name__}: {error})") from error
    return [system.unstrip_protocol(name) for name in found]


def size_of(shard: str) -> int | None:
    """Bytes of a shard; None where nobody can say without reading it."""
    if shard.startswith(PIPE):
        return None
    if not is_url(shard):
        return Path(shard).stat().st_size
    system, path = fsspec.core.url_to_fs(shard)
    return system.info(path).get("size")


def sizes_beside(shard: str) -> dict[str, ShardSize]:
    """The sizes.json in the folder of `shard`, {} if there is none; UserError if it is broken."""
    folder = shard.split("?")[0].rpartition("/")[0]
    try:
        if not is_url(shard):
            return read_sizes(Path(shard).parent)
        with tempfile.TemporaryDirectory() as copied:
            return _fetch_sizes(f"{folder}/{NAME}", Path(copied))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder}/{NAME}: not readable ({error}); pack the shards anew or remove it"
        ) from error


def _fetch_sizes(url: str, copied: Path) -> dict[str, ShardSize]:
    if url.startswith(PIPE):
        return {}
    system, path = fsspec.core.url_to_fs(url)
    try:
        (copied / NAME).write_bytes(system.cat_file(path))
    except FileNotFoundError:
        return {}
    return read_sizes(copied)
