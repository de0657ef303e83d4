"""Parquet as Hugging Face stores benchmarks, read row by row in constant memory; images are
{"bytes", "path"}, bytes, base64 or a path."""

from collections.abc import Container, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ivgr.core.errors import UserError
from ivgr.core.printable import in_line
from ivgr.data.parquet import read_batches
from ivgr.tools.benchmarks.benchmarks import Benchmark
from ivgr.tools.benchmarks.fields import Fault, Row, with_images
from ivgr.tools.benchmarks.rows import (
    IMAGES,
    NUMBERED,
    SHORTEST_IMAGE,
    UNASKED,
    StockedRows,
    belongs,
    decode_image,
    read_image,
)

BATCH = 16


class ParquetRows(StockedRows):
    """The rows of one or several parquet files, in the order of the file names."""

    def __init__(self, paths: list[Path], benchmark: Benchmark, asked: bool = True) -> None:
        self.paths = paths
        self.asked = asked
        super().__init__(self._values(benchmark, light=True), benchmark, paths[0])

    def _values(self, benchmark: Benchmark, light: bool = False) -> Iterator[tuple[str, dict]]:
        """Every row's place and filled columns; light leaves the images unread."""
        for path in self.paths:
            number = 0
            try:
                with pq.ParquetFile(path, pre_buffer=False) as file:
                    names = file.schema_arrow.names
                    if self.asked and not any(name in names for name in IMAGES):
                        raise UserError(f"{path}: no image; add one of the columns {', '.join(IMAGES)}")
                    hidden = {*UNASKED, *(IMAGES if light else ())}
                    wanted = [name for name in names if name not in hidden]
                    for batch in read_batches(file, wanted, BATCH):
                        for values in batch:
                            number += 1
                            values = {n: v for n, v in values.items() if v is not None and v != ""}
                            if belongs(values, benchmark):
                                yield f"{path}: row {number}", values
            except (pa.ArrowException, OSError) as error:
                reason = in_line(getattr(error, "strerror", None) or error, 150)
                raise UserError(f"{path}: no whole parquet ({reason}); fetch it anew") from error

    def texts(self) -> Iterator[Row]:
        light = enumerate(self._values(self.benchmark, light=True))
        return (self.row(number, where, values) for number, (where, values) in light)

    def columns(self) -> Iterator[dict]:
        return (values for _, values in self._values(self.benchmark, light=True))

    def read(self, numbers: Container[int]) -> Iterator[Row]:
        for number, (where, values) in enumerate(self._values(self.benchmark)):
            if number in numbers:
                yield add_images(self.row(number, where, values), where, values)


def add_images(row: Row, where: str, values: dict) -> Row:
    """`row` with the pictures of its numbered columns, else of its first column of `IMAGES`, or with why
    it has none; paths lead from the folder of the file, which is what stands before ": row" in `where`."""
    path, _, place = where.rpartition(": ")
    numbered = [values[name] for name in NUMBERED if name in values]
    images = numbered or next((values[name] for name in IMAGES if name in values), b"")
    try:
        every = images if isinstance(images, list) else [images]
        return with_images(row, tuple(_load(one, Path(path).parent) for one in every))
    except Fault as fault:
        return with_images(row, (), f"{place}: {fault}")


def _load(image: dict | bytes | str, folder: Path) -> bytes:
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path") or b""
    if isinstance(image, bytes):
        return image
    if not isinstance(image, str):
        raise Fault(f"its image is no image but {type(image).__name__}")
    return decode_image(image) if len(image) > SHORTEST_IMAGE else read_image(folder / image)
