"""VLMEvalKit TSV, read row by row in constant memory: a row whose `image` is short has that of
another row, which is found by its offset in the file."""

import csv
from collections.abc import Container, Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from ivgr.core.errors import UserError
from ivgr.tools.benchmarks.benchmarks import Benchmark
from ivgr.tools.benchmarks.fields import FAULT, Fault, Row, with_images
from ivgr.tools.benchmarks.rows import (
    IMAGES,
    SHORTEST_IMAGE,
    StockedRows,
    belongs,
    decode_image,
    listed,
    read_image,
)


class TsvRows(StockedRows):
    """A VLMEvalKit TSV: images as base64, as the index of the row that has it, or in image_path."""

    def __init__(self, path: Path, benchmark: Benchmark, asked: bool = True) -> None:
        csv.field_size_limit(1 << 31)
        self.path = path
        self.asked = asked
        self.offsets = {}
        self.references = {}
        super().__init__(self._survey(benchmark), benchmark, path)
        self._image_at = lru_cache(1)(self._read_image_at)
        self._keep_what_is_named()

    def _survey(self, benchmark: Benchmark) -> Iterator[tuple[str, dict]]:
        """All rows, noting where each one with an image of its own begins."""
        for where, offset, values in self._cells():
            image = values.get("image", "")
            if len(image) > SHORTEST_IMAGE:
                self.offsets[values.get("index", "")] = offset
            elif image:
                self.references.setdefault(image, where)
            if belongs(values, benchmark):
                yield where, values

    def _keep_what_is_named(self) -> None:
        """Only the offsets of images that other rows name; UserError if no row has an image at all."""
        if self.asked and self.references and not self.offsets:
            index, where = next(iter(self.references.items()))
            raise UserError(f"{where}: {_no_image_of(index)} (no row has one)")
        self.offsets = {index: self.offsets[index] for index in self.references if index in self.offsets}

    def _cells(self, offset: int = 0) -> Iterator[tuple[str, int, dict]]:
        """Every row's place, offset and filled cells; from the row at `offset` on."""
        with self.path.open("rb") as file:
            lines = _Lines(file)
            reader = csv.reader(lines, delimiter="\t", strict=True)
            try:
                header = next(reader, [])
                lines.at = file.seek(offset) if offset else lines.at
                at = lines.at
                for number, cells in enumerate(reader, 1):
                    where = f"{self.path}: row {number}"
                    values = {n: c for n, c in zip(header, cells, strict=False) if c.strip()}
                    if len(cells) != len(header):
                        values[FAULT] = f"{len(cells)} cells for {len(header)} columns"
                    elif self.asked and not values.keys() & {"image", "image_path"}:
                        values[FAULT] = "no image; fill the column image or image_path"
                    yield where, at, values
                    at = lines.at
            except (csv.Error, UnicodeDecodeError) as error:
                raise UserError(f"{self.path}: no TSV from byte {lines.at} on ({error}); mend it") from error

    def read(self, numbers: Container[int]) -> Iterator[Row]:
        for number, where, values in self._own():
            if number in numbers:
                row = self.row(number, where, values)
                try:
                    yield row if row.fault else with_images(row, self._images(values))
                except Fault as fault:
                    yield with_images(row, (), f"{where.rpartition(': ')[2]}: {fault}")

    def texts(self) -> Iterator[Row]:
        return (self.row(*place) for place in self._own())

    def columns(self) -> Iterator[dict]:
        hidden = {*IMAGES, FAULT}
        for _, _, values in self._own():
            yield {name: value for name, value in values.items() if name not in hidden}

    def _own(self) -> Iterator[tuple[int, str, dict]]:
        """Number, place and cells of the benchmark's own rows."""
        own = ((where, values) for where, _, values in self._cells() if belongs(values, self.benchmark))
        return ((number, where, values) for number, (where, values) in enumerate(own))

    def _images(self, values: dict) -> tuple[bytes, ...]:
        image = values.get("image")
        if image is None:
            paths = listed(values["image_path"])
            return tuple(read_image(self.path.parent / path) for path in paths)
        if len(image) > SHORTEST_IMAGE:
            return tuple(map(decode_image, listed(image)))
        if image not in self.offsets:
            raise Fault(_no_image_of(image))
        return self._image_at(self.offsets[image])

    def _read_image_at(self, offset: int) -> tuple[bytes, ...]:
        _, _, values = next(self._cells(offset))
        return tuple(map(decode_image, listed(values["image"])))


def _no_image_of(index: str) -> str:
    return f"its image is that of row {index!r}, which has none of its own"


class _Lines:
    """The lines of a file as text; `at` is the offset behind the last one."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.at = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self.file.readline()
        if not line:
            raise StopIteration
        text = line.decode("utf-8-sig" if self.at == 0 else "utf-8")
        self.at += len(line)
        return text
