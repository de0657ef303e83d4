"""What the readers of benchmark files share (tsv.py, parquet.py): taking stock, names of columns,
images.

Out: a `RowFile`: how many rows a benchmark has, and any of its `Row`s.
"""

import ast
import base64
import binascii
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from ivgr.errors import UserError
from ivgr.evaluation.benchmarks import Benchmark
from ivgr.evaluation.fields import Row, read_fields

INDICES = ("index", "id", "pid", "idx", "question_id")
IMAGES = ("decoded_image", "image", "images", "bytes", "image_path")
SHORTEST_IMAGE = 64  # what is no longer names another row's image, or a file


class RowFile(Protocol):
    """A benchmark's rows, in order; they are checked when it is opened, but for the images."""

    total: int

    def read(self, numbers: Container[int]) -> Iterator[Row]:
        """The rows of those numbers, counted from 0, with their images."""

    def columns(self) -> Iterator[dict]:
        """All rows as they stand in the file: filled columns by name, without the images."""


class StockedRows:
    """Counts and checks all rows at the start; they are called by the first of `INDICES` that
    tells them apart, or by their number."""

    def __init__(self, rows: Iterable[tuple[str, dict]], benchmark: Benchmark, path: Path) -> None:
        self.benchmark, self.total = benchmark, 0
        named: dict[str, set[str]] = {}
        for where, values in rows:
            read_fields(values, benchmark, "", where)
            for name in INDICES:
                if name in values:
                    named.setdefault(name, set()).add(str(values[name]))
            self.total += 1
        if not self.total:
            raise UserError(f"{path}: holds no row of {benchmark.title}; give another --data")
        self.column = next((name for name in INDICES if len(named.get(name, ())) == self.total), None)

    def row(self, number: int, where: str, values: dict) -> Row:
        """The row of `values`, without images."""
        index = str(values[self.column]) if self.column else str(number)
        return read_fields(values, self.benchmark, index, where)


def belongs(values: dict, benchmark: Benchmark) -> bool:
    """Whether a row is of this benchmark, where a file holds several."""
    return benchmark.only is None or values.get(*benchmark.only) == benchmark.only[1]


def listed(cell: str) -> list[str]:
    """A cell, or the items of the list that it writes."""
    try:
        return list(map(str, ast.literal_eval(cell))) if cell.startswith("[") else [cell]
    except (ValueError, SyntaxError):
        return [cell]


def decode_image(text: str) -> bytes:
    """Empty, and so a broken image, where `text` is no base64."""
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError):
        return b""


def read_file(path: Path) -> bytes:
    """UserError if there is no such image."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); a row names this image") from error
