"""Parquet as Hugging Face stores benchmarks, read row by row in constant memory; images are
{"bytes", "path"}, bytes, base64 or a path."""

from collections.abc import Container, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ivgr.errors import UserError
from ivgr.evaluation.benchmarks import Benchmark
from ivgr.evaluation.fields import Row, with_images
from ivgr.evaluation.rows import IMAGES, SHORTEST_IMAGE, StockedRows, belongs, decode_image, read_file

BATCH = 16


class ParquetRows(StockedRows):
    """The rows of one or several files, in the order of their names."""

    def __init__(self, paths: list[Path], benchmark: Benchmark) -> None:
        self.paths = paths
        super().__init__(self._values(benchmark, light=True), benchmark, paths[0])

    def _values(self, benchmark: Benchmark, light: bool = False) -> Iterator[tuple[str, dict]]:
        """Every row's place and filled columns; light leaves the images unread."""
        for path in self.paths:
            number = 0
            try:
                with pq.ParquetFile(path, pre_buffer=False) as file:
                    names = file.schema_arrow.names
                    if not any(name in names for name in IMAGES):
                        raise UserError(f"{path}: no image; add one of the columns {', '.join(IMAGES)}")
                    wanted = [name for name in names if not (light and name in IMAGES)]
                    for batch in file.iter_batches(BATCH, columns=wanted, use_threads=False):
                        for values in batch.to_pylist():
                            number += 1
                            values = {n: v for n, v in values.items() if v is not None and v != ""}
                            if belongs(values, benchmark):
                                yield f"{path}: row {number}", values
            except (pa.ArrowException, OSError) as error:
                reason = str(error).splitlines()[0][:150]
                raise UserError(f"{path}: no whole parquet ({reason}); fetch it anew") from error

    def columns(self) -> Iterator[dict]:
        return (values for _, values in self._values(self.benchmark, light=True))

    def read(self, numbers: Container[int]) -> Iterator[Row]:
        for number, (where, values) in enumerate(self._values(self.benchmark)):
            if number not in numbers:
                continue
            images = next((values[name] for name in IMAGES if name in values), b"")
            folder = Path(where.rpartition(": row")[0]).parent
            images = images if isinstance(images, list) else [images]
            yield with_images(self.row(number, where, values), tuple(_load(one, folder) for one in images))


def _load(image: dict | bytes | str, folder: Path) -> bytes:
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path") or b""
    if isinstance(image, bytes):
        return image
    return decode_image(image) if len(image) > SHORTEST_IMAGE else read_file(folder / image)
