"""Readers: a parquet, JSON, JSONL, COCO or CSV file, or a folder of them → rows in a fixed order.

Each reader streams: a parquet by batches, JSONL and CSV by lines, a JSON array by elements.
Only a COCO file is read whole, since its boxes must be gathered by image (its images are not).
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from ivgr.core.errors import UserError
from ivgr.core.printable import brief, in_line
from ivgr.data.parquet import read_batches
from ivgr.tools.packing_data.coco import ask_coco, is_coco

BATCH = 32
CHUNK = 1 << 20
LONGEST = 1 << 28
IMAGE_COLUMNS = ("image", "images")
CSV_COLUMNS = ("id", "question", "answer", "image", "boxes", "kind", "check", "labels")
CSV_NEEDED = ("question", "answer")
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Row:
    """position is FILE:N, N counting from 1 (a JSONL's line); broken says why there are no fields."""

    position: str
    fields: dict = field(default_factory=dict)
    broken: str = ""


def find_sources(source: Path) -> list[Path]:
    """`source` itself, or the files of a folder that can be read, sorted; UserError if none."""
    if not source.exists():
        raise UserError(f"pack: no file or folder at {source}")
    inside = sorted(source.iterdir()) if source.is_dir() else [source]
    found = [path for path in inside if path.suffix in READERS and path.is_file()]
    if not found:
        known = ", ".join(READERS)
        raise UserError(f"pack: {source} is no file of rows, nor a folder of them; known are {known}")
    return found


def read_rows(sources: list[Path], light: bool = False) -> Iterator[Row]:
    """The rows of `sources` in order; light leaves a parquet's image columns unread. UserError
    names a file that is broken as a whole."""
    for path in sources:
        yield from READERS[path.suffix](path, light)


def count_kinds(sources: list[Path], kind_of: Callable[[dict], str]) -> Counter:
    """Returns how many rows are paired and how many are not, without reading images."""
    return Counter(kind_of(row.fields) == "paired" for row in read_rows(sources, light=True))


def mix_kinds(sources: list[Path], kind_of: Callable[[dict], str], counts: Counter) -> Iterator[Row]:
    """All rows, the two kinds spread evenly whatever the source's order, so that every shard holds
    both. One pass over the source a kind."""
    streams = {paired: _of_kind(sources, kind_of, paired) for paired in sorted(counts)}
    taken: Counter = Counter()
    for _ in range(counts.total()):
        paired = min(streams, key=lambda paired: ((taken[paired] + 1) / counts[paired], paired))
        taken[paired] += 1
        yield next(streams[paired])


def _of_kind(sources: list[Path], kind_of: Callable[[dict], str], paired: bool) -> Iterator[Row]:
    return (row for row in read_rows(sources) if (kind_of(row.fields) == "paired") == paired)


def _read_parquet(path: Path, light: bool) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path, buffer_size=CHUNK, pre_buffer=False) as file:
            names = [n for n in file.schema_arrow.names if not (light and n in IMAGE_COLUMNS)]
            number = 0
            for batch in read_batches(file, names, BATCH):
                for fields in batch:
                    number += 1
                    yield Row(f"{path.name}:{number}", fields)
    except (pa.ArrowException, OSError) as error:
        reason = in_line(getattr(error, "strerror", None) or error, 150)
        raise UserError(f"{path}: no whole parquet ({reason}); fetch or write it anew") from error


def _read_jsonl(path: Path, light: bool) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), 1):
            if len(line) > LONGEST:
                yield Row(f"{path.name}:{number}", broken=f"a line of more than {LONGEST} bytes")
            elif line.strip():
                yield _row_of(f"{path.name}:{number}", line)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of `file`, of one beyond `LONGEST` bytes no more than its beginning."""
    while line := file.readline(LONGEST + 1):
        yield line
        while len(line) > LONGEST and line[-1:] != b"\n":
            line = file.readline(LONGEST + 1)
            if len(line) <= LONGEST:
                break


def _row_of(position: str, line: bytes) -> Row:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Row(position, broken=f"not valid JSON ({error})")
    return _object_row(position, fields)


def _object_row(position: str, fields: object) -> Row:
    return Row(position, fields) if isinstance(fields, dict) else Row(position, broken="not a JSON object")


def _read_json(path: Path, light: bool) -> Iterator[Row]:
    """A JSON array of rows, element by element, or a COCO file."""
    with path.open(encoding="utf-8-sig") as file:
        start = file.read(CHUNK).lstrip()[:1]
        file.seek(0)
        try:
            if start == "[":
                elements = enumerate(_elements(file), 1)
                yield from (_object_row(f"{path.name}:{number}", fields) for number, fields in elements)
                return
            content = json.load(file)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}: not valid JSON ({error}); mend it, or call it .jsonl if it is a row a line"
            ) from error
    if not is_coco(content):
        raise UserError(
            f'{path}: neither an array of rows nor COCO ("images", "annotations", "categories"); '
            "write one row per line and call it .jsonl"
        )
    for number, (fields, broken) in enumerate(ask_coco(content), 1):
        yield Row(f"{path.name}:{number}", fields, broken)


def _skip(text: str, at: int) -> int:
    """Returns the position after the whitespace at `at`."""
    return found.end() if (found := _SPACE.match(text, at)) else at


def _elements(file: TextIO) -> Iterator[object]:
    """The elements of the array in `file`, a chunk of text in memory at a time."""
    decoder = json.JSONDecoder()
    text = file.read(CHUNK)
    at, comma = text.index("[") + 1, False
    while True:
        at = _skip(text, at)
        if text[at : at + 1] == "]" and not comma:
            break
        try:
            element, end = decoder.raw_decode(text, at)
            end = _skip(text, end)
        except json.JSONDecodeError:
            end = len(text)
        if text[end : end + 1] and text[end] in ",]":
            yield element
            comma = text[end] == ","
            at = end + comma
            continue
        more = file.read(max(CHUNK, len(text) - at))
        if not more or len(text) - at > LONGEST:
            decoder.raw_decode(text, at)
            raise ValueError(f"the array does not end, or an element is longer than {LONGEST} characters")
        text, at = text[at:] + more, 0
    if text[at + 1 :].strip() or file.read().strip():
        raise ValueError("something stands after the array")


def _read_csv(path: Path, light: bool) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            _check_columns(path, list(reader.fieldnames or []))
            for number, fields in enumerate(reader, 1):
                yield _csv_row(f"{path.name}:{number}", fields)
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}: line {reader.line_num} is no CSV ({error}); mend the line") from error


def _check_columns(path: Path, names: list[str]) -> None:
    missing = [name for name in CSV_NEEDED if name not in names]
    unknown = [name for name in names if name not in CSV_COLUMNS]
    if missing or unknown:
        wrong = f"column {missing[0]!r} is missing" if missing else f"column {unknown[0]!r} is not known"
        raise UserError(f"{path}: {wrong}; the columns are {','.join(CSV_COLUMNS)}")


def _csv_row(position: str, texts: dict) -> Row:
    """Empty cells are left out; boxes and labels are JSON lists."""
    if None in texts or None in texts.values():
        return Row(position, broken="not as many cells as columns")
    fields = {name: text for name, text in texts.items() if text.strip()}
    for name in ("boxes", "labels"):
        try:
            fields |= {name: json.loads(fields[name])} if name in fields else {}
        except (ValueError, RecursionError):
            return Row(position, broken=f"{name} is {brief(fields[name])}, must be a JSON list")
    return Row(position, fields)


READERS: dict[str, Callable[[Path, bool], Iterator[Row]]] = {
    ".parquet": _read_parquet,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
}
