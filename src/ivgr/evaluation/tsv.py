"""VLMEvalKit TSV, read row by row in constant memory: a row whose `image` is short has that of
another row, which is found by its offset in the file."""

import csv
from collections.abc import Container, Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from ivgr.errors import UserError
from ivgr.evaluation.benchmarks import Benchmark
from ivgr.evaluation.fields import Row, with_images
from ivgr.evaluation.rows import IMAGES, SHORTEST_IMAGE, StockedRows, belongs, decode_image, listed, read_file


class TsvRows(StockedRows):
    """A VLMEvalKit TSV: images as base64, as the index of the row that has it, or in image_path."""

    def __init__(self, path: Path, benchmark: Benchmark) -> None:
        csv.field_size_limit(1 << 31)
        self.path, self.offsets = path, {}
        super().__init__(self._survey(benchmark), benchmark, path)
        self._image_at = lru_cache(1)(self._read_image_at)
        self._check_references()

    def _survey(self, benchmark: Benchmark) -> Iterator[tuple[str, dict]]:
        """All rows, noting where each one with an image of its own begins."""
        self.references = {}
        for where, offset, values in self._cells():
            image = values.get("image", "")
            if not image and "image_path" not in values:
                raise UserError(f"{where}: no image; fill the column image or image_path")
            if len(image) > SHORTEST_IMAGE:
                self.offsets[values.get("index", "")] = offset
            elif image:
                self.references.setdefault(image, where)
            if belongs(values, benchmark):
                yield where, values

    def _check_references(self) -> None:
        for index, where in self.references.items():
            if index not in self.offsets:
                raise UserError(f"{where}: its image is that of row {index!r}, which has none of its own")
        self.offsets = {index: self.offsets[index] for index in self.references}

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
                    if len(cells) != len(header):
                        raise UserError(
                            f"{where}: {len(cells)} cells for {len(header)} columns; mend the row"
                        )
                    yield where, at, {n: c for n, c in zip(header, cells, strict=True) if c.strip()}
                    at = lines.at
            except (csv.Error, UnicodeDecodeError) as error:
                raise UserError(f"{self.path}: no TSV from byte {lines.at} on ({error}); mend it") from error

    def read(self, numbers: Container[int]) -> Iterator[Row]:
        own = ((where, values) for where, _, values in self._cells() if belongs(values, self.benchmark))
        for number, (where, values) in enumerate(own):
            if number in numbers:
                yield with_images(self.row(number, where, values), self._images(values))

    def columns(self) -> Iterator[dict]:
        for _, _, values in self._cells():
            if belongs(values, self.benchmark):
                yield {name: value for name, value in values.items() if name not in IMAGES}

    def _images(self, values: dict) -> tuple[bytes, ...]:
        image = values.get("image")
        if image is None:
            paths = listed(values["image_path"])
            return tuple(read_file(self.path.parent / path) for path in paths)
        if len(image) <= SHORTEST_IMAGE:
            return self._image_at(self.offsets[image])
        return tuple(map(decode_image, listed(image)))

    def _read_image_at(self, offset: int) -> tuple[bytes, ...]:
        _, _, values = next(self._cells(offset))
        return tuple(map(decode_image, listed(values["image"])))


class _Lines:
    """The lines of a file as text; `at` is the offset behind the last one."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.at = file, 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self.file.readline()
        if not line:
            raise StopIteration
        text = line.decode("utf-8-sig" if self.at == 0 else "utf-8")
        self.at += len(line)
        return text
