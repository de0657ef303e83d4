"""JSON as Mini-o3 and others publish benchmarks: one list of rows, images as paths beside the file."""

import json
from collections.abc import Container, Iterator
from pathlib import Path

from ivgr.core.errors import UserError
from ivgr.tools.benchmarks.benchmarks import Benchmark
from ivgr.tools.benchmarks.fields import Row
from ivgr.tools.benchmarks.parquet_rows import add_images
from ivgr.tools.benchmarks.rows import IMAGES, UNASKED, StockedRows, belongs

LARGEST = 1 << 28  # bytes of a file


class JsonRows(StockedRows):
    """The rows of one or several files, in their order; a file holds a list of objects."""

    def __init__(self, paths: list[Path], benchmark: Benchmark, asked: bool = True) -> None:
        self.rows = [(where, values) for path in paths for where, values in _read(path)]
        self.rows = [(where, values) for where, values in self.rows if belongs(values, benchmark)]
        super().__init__(self.rows, benchmark, paths[0])

    def read(self, numbers: Container[int]) -> Iterator[Row]:
        for number, (where, values) in enumerate(self.rows):
            if number in numbers:
                yield add_images(self.row(number, where, values), where, values)

    def texts(self) -> Iterator[Row]:
        return (self.row(number, where, values) for number, (where, values) in enumerate(self.rows))

    def columns(self) -> Iterator[dict]:
        hidden = {*IMAGES, *UNASKED}
        return ({n: v for n, v in values.items() if n not in hidden} for _, values in self.rows)


def _read(path: Path) -> Iterator[tuple[str, dict]]:
    """Reads the place and the filled columns of every row."""
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: has more than {LARGEST} bytes; convert it to parquet")
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: no JSON ({type(error).__name__}: {str(error)[:100]}); mend it") from error
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise UserError(f"{path}: must hold a list of objects, one per row")
    for number, row in enumerate(found, 1):
        yield f"{path}: row {number}", {n: v for n, v in row.items() if v is not None and v != ""}
