"""Stored predictions, read back: a .jsonl of ours or of others, or VLMEvalKit's .xlsx and .tsv.

In: a file. Out: replies by the index of their row, as texts.
"""

import csv
import json
import zipfile
from collections.abc import Iterable, Iterator
from math import isfinite
from pathlib import Path

from ivgr.core.errors import UserError, require_package
from ivgr.core.printable import brief, in_line

INDEX, REPLIES = "index", ("prediction", "reply")  # the second is that of a journal of `ivgr evaluate`
LARGEST = 1 << 31  # bytes, unpacked

# Its place in the file, and cells by column.
Line = tuple[str, dict]


def read_predictions(path: Path) -> dict[str, str]:
    """UserError, in one line, names the file and what of it cannot be used."""
    if path.suffix not in READERS:
        raise UserError(f"{path}: must be a {', '.join(READERS)}")
    if not path.is_file():
        raise UserError(f"{path}: nothing there; give a file of predictions")
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path}: has more than {LARGEST} bytes; leave out its images")
    try:
        return _collect(path, READERS[path.suffix](path))
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{path}: no whole {path.suffix} ({reason}); write it anew") from error


def _collect(path: Path, lines: Iterable[Line]) -> dict[str, str]:
    found: dict[str, str] = {}
    for where, cells in lines:
        column = next((name for name in REPLIES if name in cells), None)
        if INDEX not in cells or column is None:
            lacking = INDEX if INDEX not in cells else REPLIES[0]
            raise UserError(f"{path}: {where}: no column {lacking}; it has {_name(cells)}")
        index = _as_index(cells[INDEX])
        if index is None:
            raise UserError(f"{path}: {where}: its index is {brief(cells[INDEX])}; give a number or a text")
        if index in found:
            raise UserError(f"{path}: {where}: index {brief(index)} stands there twice; keep one of them")
        reply = _as_text(cells[column])
        if reply is None:
            raise UserError(f"{path}: {where}: its {column} is {brief(cells[column])}; give a text")
        found[index] = reply
    if not found:
        raise UserError(f"{path}: holds no prediction")
    return found


def _as_index(cell: object) -> str | None:
    """A whole number that a table stores with a point is that number."""
    if isinstance(cell, float) and isfinite(cell) and cell == int(cell):
        cell = int(cell)
    text = cell.strip() if isinstance(cell, str) else cell
    return str(text) if isinstance(text, str | int) and not isinstance(text, bool) and text != "" else None


def _as_text(cell: object) -> str | None:
    """Returns the cell as text; an empty cell is an empty reply."""
    if cell is None:
        return ""
    number = isinstance(cell, int | float) and not isinstance(cell, bool) and isfinite(cell)
    return str(cell) if isinstance(cell, str) or number else None


def _read_jsonl(path: Path) -> Iterator[Line]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    cells = json.loads(line)
                except ValueError as error:
                    raise UserError(f"{path}: line {number}: no JSON; mend it") from error
                if not isinstance(cells, dict):
                    raise UserError(f"{path}: line {number}: no object with index and prediction")
                yield f"line {number}", cells


def _read_tsv(path: Path) -> Iterator[Line]:
    csv.field_size_limit(1 << 31)
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from _table(path, csv.reader(file, delimiter="\t", strict=True))


def _read_xlsx(path: Path) -> Iterator[Line]:
    require_package("score: an .xlsx", "openpyxl", "evaluate")
    from openpyxl import load_workbook

    try:
        with zipfile.ZipFile(path) as packed:
            if sum(part.file_size for part in packed.infolist()) > LARGEST:
                raise UserError(f"{path}: unpacks to more than {LARGEST} bytes; leave out its images")
        book = load_workbook(path, read_only=True)
        sheet = book.worksheets[0]
        sheet.reset_dimensions()
        rows = [list(row) for row in sheet.iter_rows(values_only=True)]
        book.close()
    except UserError:
        raise
    except Exception as error:  # openpyxl has no error of its own for a file that is none
        raise ValueError(f"{type(error).__name__}: {error}") from error
    width = len(rows[0]) if rows else 0
    yield from _table(path, (row + [None] * (width - len(row)) for row in rows if any(row)))


def _table(path: Path, rows: Iterable[list]) -> Iterator[Line]:
    """Rows under a header; one of another length is refused."""
    header: list | None = None
    for number, row in enumerate(rows):
        if header is None:
            header = list(map(str, row))
            _refuse_header(path, header)
        elif len(row) != len(header):
            raise UserError(
                f"{path}: row {number}: {len(row)} cells for {len(header)} columns; write it anew"
            )
        else:
            yield f"row {number}", dict(zip(header, row, strict=True))


def _refuse_header(path: Path, header: list[str]) -> None:
    """UserError if a column is missing, also where no row stands below."""
    cells = dict.fromkeys(header)
    lacking = [INDEX] if INDEX not in cells else [] if cells.keys() & set(REPLIES) else [REPLIES[0]]
    if lacking:
        raise UserError(f"{path}: no column {lacking[0]}; it has {_name(cells)}")


def _name(cells: dict) -> str:
    return ", ".join(in_line(name, 40) for name in list(cells)[:12]) or "none"


READERS = {".jsonl": _read_jsonl, ".tsv": _read_tsv, ".xlsx": _read_xlsx}
