"""Helpers that the readers of benchmark files share (tsv_rows.py, parquet_rows.py, json_rows.py): the
inventory of rows, column names, images.

Out: a `RowFile`: how many rows a benchmark has, and any of its `Row`s.
"""

import base64
import binascii
import os
from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ivgr.core.errors import UserError
from ivgr.core.regular_files import read_file
from ivgr.tools.benchmarks.benchmarks import PAIR, Benchmark
from ivgr.tools.benchmarks.fields import Fault, Row, read_fields, read_groups
from ivgr.tools.benchmarks.lists import read_list

INDICES = ("index", "id", "pid", "idx", "question_id", "Index", "doc_id")
NUMBERED = tuple(f"image_{n}" for n in range(1, 9))  # a column per picture of a row
IMAGES = ("decoded_image", "image", "images", "bytes", "image_path", *NUMBERED)
UNASKED = ("crop_image", "crop_images")  # further pictures, which are not shown
SHORTEST_IMAGE = 64  # what is no longer names another row's image, or a file


class RowFile(Protocol):
    """A benchmark's rows, in order. One that cannot be asked has a fault; UserError, when it is opened,
    if none can."""

    total: int

    def read(self, numbers: Container[int]) -> Iterator[Row]:
        """Returns the rows with those numbers, counted from 0, with their images."""
        ...

    def texts(self) -> Iterator[Row]:
        """Returns all rows without their images."""
        ...

    def columns(self) -> Iterator[dict]:
        """All rows as they stand in the file: filled columns by name, without the images."""
        ...


class StockedRows:
    """Counts and reads all rows at the start; they are called by the first of `INDICES` that tells
    them apart, or by their number."""

    def __init__(self, rows: Iterable[tuple[str, dict]], benchmark: Benchmark, path: Path) -> None:
        self.benchmark = benchmark
        self.total = 0
        self.column = None
        named: dict[str, set[str]] = {}
        faulty, first = 0, ""
        for where, values in rows:
            if fault := read_fields(values, benchmark, "").fault:
                faulty, first = faulty + 1, first or f"{where}: {fault}"
            for name in INDICES:
                if name in values:
                    named.setdefault(name, set()).add(_name(values, name, benchmark))
            self.total += 1
        if not self.total:
            raise UserError(f"{path}: holds no row of {benchmark.title}; give another --data")
        if faulty == self.total:
            raise UserError(f"{first} (no row of {benchmark.title} can be asked)")
        self.column = next((name for name in INDICES if len(named.get(name, ())) == self.total), None)

    def row(self, number: int, where: str, values: dict) -> Row:
        """The row of `values`, without images; a fault of it says where."""
        index = _name(values, self.column, self.benchmark) if self.column else str(number)
        row = read_fields(values, self.benchmark, index)
        if self.benchmark.average == "pairs":
            row = replace(row, groups=row.groups | {PAIR: str(number // 2)})
        return replace(row, fault=f"{where.rpartition(': ')[2]}: {row.fault}") if row.fault else row


def _name(values: dict, column: str, benchmark: Benchmark) -> str:
    """Returns the row's name, prefixed with its split if each split numbers its own rows."""
    name = str(values[column])
    split = read_groups(values, benchmark).get("split") if benchmark.rule == "box" else None
    return f"{split}_{name}" if split else name


def belongs(values: dict, benchmark: Benchmark) -> bool:
    """Returns whether a row belongs to this benchmark, for files that hold several benchmarks."""
    return benchmark.only is None or values.get(*benchmark.only) == benchmark.only[1]


def listed(cell: str) -> list[str]:
    """Returns the items of the list that `cell` holds, else `cell` alone."""
    try:
        return list(map(str, read_list(cell))) if cell.startswith("[") else [cell]
    except ValueError:
        return [cell]


def decode_image(text: str) -> bytes:
    """Empty, and so a broken image, where `text` is no base64."""
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError):
        return b""


def read_image(path: Path) -> bytes:
    """Fault if there is no such image."""
    if not os.path.isfile(path):
        raise Fault(f"its image {_short(path)} is no file")
    try:
        return read_file(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise Fault(f"its image {_short(path)} cannot be read ({reason})") from error


def _short(path: Path) -> str:
    return repr(path.name[:60])
