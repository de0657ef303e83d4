"""A shard's tar, read once from front to back, whatever has happened to it.

In: the path or URL of a shard. Out: its raw entries, one a key: {"__key__", "__url__", "json":
bytes, "jpg": bytes, …}, and a `RejectedSample` for what is missing. Of a local tar, only what is
asked for is read. What a tar states is believed only within bounds, so that none costs more memory or
time than its bytes are worth.
"""

import bz2
import gzip
import lzma
import re
import tarfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO, cast

from webdataset.tariterators import base_plus_ext, group_by_keys

from ivgr.core.printable import in_line
from ivgr.core.regular_files import LARGEST_FILE, open_file
from ivgr.core.rejection import RejectedSample
from ivgr.data.remote import is_url, open_shard

LARGEST_JSON = 2**26  # bytes, of one file
LARGEST_SAMPLE = 2**29  # bytes, of all files of a key
MOST_FILES = 1000  # of a key
LONGEST_HEADER = 2**20  # bytes, of what a tar says of one file in a header of its own
LARGEST_STREAM = 2**35  # bytes, of a shard whose size nobody knows
SLACK, RATIO = 2**26, 20  # bytes that may come out of any compressed file, and how many for each of its own
ATTEMPTS, PAUSE = 5, 1.0  # for a shard that cannot be reached; seconds, doubled after each
COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
META = re.compile(r"__[^/]*__($|/)")
HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
UNREACHABLE, OVERSIZED = "shard: unreachable", "shard: oversized file"


@dataclass(frozen=True)
class Slice:
    """Bytes of a local file that lie there but have not been read."""

    path: str
    start: int
    size: int

    def __len__(self) -> int:
        return self.size

    def read(self) -> bytes:
        with open_file(self.path) as file:
            file.seek(self.start)
            return file.read(self.size)


def load(data: "bytes | Slice") -> bytes:
    """OSError if the file is gone."""
    return data.read() if isinstance(data, Slice) else data


def read_shard(shard: str) -> Iterator[dict]:
    """The raw entries of a shard in order; what is no JSON is a `Slice` where it can be. A shard that
    is broken raises RejectedSample after the entries that are whole ("shard: truncated", "not a
    tar", "duplicate file", "oversized file", "unpacks too far", "endless", "unreadable"); one that
    cannot be reached is taken up where it broke off, until `ATTEMPTS` in a row gave nothing ("shard:
    unreachable")."""
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
            yield from group_by_keys(_bounded(_files(file, shard), shard))
    except RejectedSample:
        raise
    except Exception as error:  # tarfile's, a decompressor's, or a file system's own
        reason = _reason(error, shard)
        detail = in_line(error.args[0] if error.args else "") or type(error).__name__
        mend = "check the network and the address" if reason == UNREACHABLE else "write it anew"
        raise RejectedSample(f"{shard}: no whole tar ({detail}); {mend}", reason) from None


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Returns the content of a regular file."""
    with cast(BinaryIO, tar.extractfile(member)) as file:
        return file.read()


def _files(file: BinaryIO, shard: str) -> Iterator[dict]:
    """The regular files of a tar as WebDataset groups them."""
    local = not is_url(shard) and shard.endswith(".tar")
    for tar, member in read_members(file, shard, LARGEST_STREAM, seekable=local):
        if not META.match(member.name):
            lazy = tar.fileobj is file and not member.name.endswith(".json")
            data = Slice(shard, member.offset_data, member.size) if lazy else _read(tar, member)
            yield {"fname": member.name, "data": data, "__url__": shard}


def _bounded(files: Iterator[dict], shard: str) -> Iterator[dict]:
    """RejectedSample where a file, or all of a key, is larger than anybody's sample."""
    key, size, count = None, 0, 0
    for file in files:
        own, length = base_plus_ext(file["fname"])[0], len(file["data"])
        size, count = (size + length, count + 1) if own == key else (length, 1)
        key = own
        large = file["fname"].endswith(".json") and length > LARGEST_JSON
        if large or size > LARGEST_SAMPLE or count > MOST_FILES:
            raise RejectedSample(
                f"{shard}: {in_line(file['fname'], 80)} or its sample is larger than any should be "
                f"({length} of {size} bytes, {count} files); leave it out",
                OVERSIZED,
            )
        yield file


def read_members(
    file: BinaryIO, name: str, most: int, seekable: bool = False
) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The regular files of a tar, compressed or not, each with the tar that it can be extracted from
    before the next is asked for; one that is `seekable` and not compressed is read where it lies.
    tarfile's errors, or RejectedSample, where it goes beyond bounds or has more than `most` bytes."""
    metered = _Meter(file, most)
    kind = metered.peek(2)
    in_place = seekable and kind not in COMPRESSED
    if in_place:
        file.seek(0)
    source, mode = (file, "r:") if in_place else (_unpack(metered, kind), "r|")
    with tarfile.open(fileobj=source, mode=mode, tarinfo=_StrictInfo) as tar:
        for member in tar:
            if kind in COMPRESSED:
                _check_ratio(member.offset, metered.count, name)
            if member.isreg():
                yield tar, member
            tar.members = []


class _Meter:
    """Counts the bytes that are read of `file`, and gives them as they come, which a line that breaks
    off does not take back; RejectedSample ("shard: endless") past `most`."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self.file = file
        self.most = most
        self.count = 0
        self.head = b""

    def peek(self, size: int) -> bytes:
        """The next bytes, which are read again."""
        self.head = self.read(size)
        return self.head

    def read(self, size: int) -> bytes:
        if self.head:
            head, self.head = self.head[:size], self.head[size:]
            return head
        data = self.file.read(size)
        self.count += len(data)
        if self.count > self.most:
            raise RejectedSample(
                f"it does not end within {self.most} bytes; write smaller shards", "shard: endless"
            )
        return data


def _unpack(file: _Meter, kind: bytes) -> BinaryIO:
    """Returns the uncompressed content of `file`, whose first two bytes are `kind`."""
    return cast(BinaryIO, COMPRESSED[kind](file, "rb") if kind in COMPRESSED else file)


def _check_ratio(unpacked: int, packed: int, name: str) -> None:
    """RejectedSample if so many bytes cannot have come out of `packed` ones by honest means."""
    if unpacked > SLACK + RATIO * packed:
        raise RejectedSample(
            f"{name}: {packed} compressed bytes hold more than {unpacked}; write it without compression",
            "shard: unpacks too far",
        )


class _StrictInfo(tarfile.TarInfo):
    """A header that is stricter than tarfile's: a damaged or absent header is an error and not the end; so is
    one beyond bounds. A file that is sparse or larger than `LARGEST_FILE` is RejectedSample."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        """tarfile's hook for a member of any type: before what follows the header is read, and after."""
        if self.type in HEADERS and not 0 <= self.size <= LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        if self.type == tarfile.GNUTYPE_SPARSE:
            _refuse(self)
        member = super()._proc_member(tar)
        if member.size < 0:
            raise tarfile.ReadError(f"a file of {member.size} bytes")
        if member.size > LARGEST_FILE or member.sparse is not None:
            _refuse(member)
        return member

    def _proc_gnusparse_10(self, next: tarfile.TarInfo, *_) -> None:
        _refuse(next)


def _refuse(member: tarfile.TarInfo) -> None:
    raise RejectedSample(
        f"{in_line(member.name, 80)} is sparse or larger than {LARGEST_FILE} bytes; leave it out", OVERSIZED
    )


def _reason(error: Exception, shard: str) -> str:
    text = str(error.args[0]) if error.args else ""
    if isinstance(error, EOFError) or re.search("end of data|end of file|truncated|empty", text):
        return "shard: truncated"
    if "duplicate file name" in text:
        return "shard: duplicate file"
    packed = isinstance(error, zlib.error | lzma.LZMAError | gzip.BadGzipFile) or "Invalid data" in text
    if packed or isinstance(error, tarfile.TarError | RecursionError):
        return "shard: not a tar"
    return UNREACHABLE if is_url(shard) else "shard: unreadable"
