"""Predictions as VLMEvalKit stores them, so that its own scorer can be run on them: its columns
without the images, and `prediction`, which is the answer that was scored here.

In: journal lines. Out: BENCHMARK.tsv or BENCHMARK.xlsx.
"""

import csv
import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ivgr.errors import UserError
from ivgr.watch.record import write_atomically

FORMS = ("tsv", "xlsx")


def export_rows(rows: Sequence[dict], path: Path) -> None:
    """Writes `path`, .tsv or .xlsx (pip install "ivgr[evaluate]")."""
    lines = [_line(row) for row in rows]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    columns.sort(key="prediction".__eq__)
    table = [columns, *([line.get(name, "") for name in columns] for line in lines)]
    (_write_xlsx if path.suffix == ".xlsx" else _write_tsv)(table, path)


def _line(row: dict) -> dict:
    index = row["index"]
    return {
        "index": int(index) if index.isdecimal() else index,
        "question": row["question"],
        **row["options"],
        "answer": row["gold"],
        **row["groups"],
        "prediction": row["answer"],
    }


def _write_tsv(table: list[list], path: Path) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(table)
    write_atomically(path, text.getvalue().encode())


def _write_xlsx(table: list[list], path: Path) -> None:
    from openpyxl import Workbook
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    for line in table:
        sheet.append(
            [ILLEGAL_CHARACTERS_RE.sub("", cell) if isinstance(cell, str) else cell for cell in line]
        )
    buffer = io.BytesIO()
    book.save(buffer)
    write_atomically(path, buffer.getvalue())


def check_form(form: str) -> None:
    """UserError if `form` cannot be written."""
    if form not in FORMS:
        raise UserError(f"evaluate --export is {form!r}, must be {' or '.join(FORMS)}")
    if form == "xlsx" and find_spec("openpyxl") is None:
        raise UserError('evaluate --export xlsx needs openpyxl: pip install "ivgr[evaluate]"')
