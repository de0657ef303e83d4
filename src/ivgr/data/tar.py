"""A shard's tar, read once from front to back, whatever has happened to it.

In: the path or URL of a shard. Out: its raw entries, one a key: {"__key__", "__url__", "json":
bytes, "jpg": bytes, …}, and a `RejectedSample` for what is missing. Of a local tar, only what is
asked for is read.
"""

import re
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

from webdataset.tariterators import group_by_keys

from ivgr.data.rejection import RejectedSample
from ivgr.data.remote import is_url, open_shard

LARGEST_FILE = 2**30  # bytes, of a file inside a shard
ATTEMPTS, PAUSE = 5, 1.0  # for a shard that cannot be reached; seconds, doubled after each
COMPRESSED = (b"\x1f\x8b", b"BZ", b"\xfd7")  # gzip, bzip2, xz
META = re.compile(r"__[^/]*__($|/)")
UNREACHABLE = "shard: unreachable"


@dataclass(frozen=True)
class Slice:
    """Bytes of a file that lie there but have not been read."""

    file: BinaryIO
    start: int
    size: int

    def read(self) -> bytes:
        self.file.seek(self.start)
        return self.file.read(self.size)


def load(data: "bytes | Slice") -> bytes:
    return data.read() if isinstance(data, Slice) else data


def read_shard(shard: str) -> Iterator[dict]:
    """The raw entries of a shard in order; what is no JSON is a `Slice` where it can be, to be
    loaded before the next entry is asked for. A shard that is broken raises
    RejectedSample after the entries that are whole ("shard: truncated", "not a tar", "duplicate
    file", "oversized file", "unreadable"); one that cannot be reached is taken up where it broke
    off, until `ATTEMPTS` in a row gave nothing ("shard: unreachable")."""
    done = failures = 0
    streamed = False
    while True:
        try:
            for entry in islice(_read_once(shard, streamed), done, None):
                yield entry
                done, failures = done + 1, 0
            return
        except RejectedSample as error:
            failures, streamed = failures + 1, True
            if error.reason != UNREACHABLE or failures == ATTEMPTS:
                raise
            time.sleep(PAUSE * 2 ** (failures - 1))


def _read_once(shard: str, streamed: bool) -> Iterator[dict]:
    try:
        with open_shard(shard, streamed) as file:
            yield from group_by_keys(_files(file, shard))
    except RejectedSample:
        raise
    except Exception as error:  # tarfile's, a decompressor's, or a file system's own
        reason = _reason(error, shard)
        detail = str(error.args[0] if error.args else "") or type(error).__name__
        mend = "check the network and the address" if reason == UNREACHABLE else "write it anew"
        raise RejectedSample(f"{shard}: no whole tar ({detail.splitlines()[0]}); {mend}", reason) from None


def _files(file, shard: str) -> Iterator[dict]:
    """The regular files of a tar as WebDataset groups them."""
    plain = not is_url(shard) and shard.endswith(".tar") and file.peek(2)[:2] not in COMPRESSED
    with tarfile.open(fileobj=file, mode="r:" if plain else "r|*", tarinfo=_StrictInfo) as tar:
        for member in tar:
            if member.isreg() and not META.match(member.name):
                if member.size > LARGEST_FILE or member.sparse is not None:
                    raise RejectedSample(
                        f"{shard}: {member.name} is sparse or larger than {LARGEST_FILE} bytes; leave it out",
                        "shard: oversized file",
                    )
                lazy = plain and not member.name.endswith(".json")
                data = (
                    Slice(file, member.offset_data, member.size) if lazy else tar.extractfile(member).read()
                )
                yield {"fname": member.name, "data": data, "__url__": shard}
            tar.members = []


class _StrictInfo(tarfile.TarInfo):
    """Where tarfile takes a damaged or absent header for the end, this is an error."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def _reason(error: Exception, shard: str) -> str:
    text = str(error.args[0]) if error.args else ""
    if isinstance(error, EOFError) or re.search("end of data|end of file|truncated|empty", text):
        return "shard: truncated"
    if "duplicate file name" in text:
        return "shard: duplicate file"
    if isinstance(error, tarfile.TarError):
        return "shard: not a tar"
    return UNREACHABLE if is_url(shard) else "shard: unreadable"
