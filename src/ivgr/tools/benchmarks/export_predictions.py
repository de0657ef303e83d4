"""Predictions as VLMEvalKit stores them, so that its own scorer can be run on them: the columns of
the benchmark's file without the images, and `prediction`, which is the answer that was scored here.

In: journal lines and columns. Out: MODEL_DATASET.tsv or .xlsx.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from ivgr.core.atomic_files import write_atomically
from ivgr.core.errors import UserError, require_package
from ivgr.core.printable import FORMULA
from ivgr.tools.benchmarks.benchmarks import Benchmark

FORMS = ("tsv", "xlsx")
DIGITS = 15  # that a table stores exactly


def name_file(label: str, benchmark: Benchmark, form: str) -> str:
    """Returns MODEL_DATASET.FORM, the file name from which VLMEvalKit reads the benchmark."""
    return f"{label}_{benchmark.kit}.{form}"


def export_rows(rows: Sequence[dict], columns: Iterable[dict], path: Path) -> None:
    """Writes `path`, .tsv or .xlsx (pip install "ivgr[evaluate]"); `columns` are what the benchmark's
    file says of the same rows."""
    lines = [
        {"index": ""} | fields | {"index": row["index"], "prediction": row["answer"]}
        for row, fields in zip(rows, columns, strict=True)
    ]
    names = list(dict.fromkeys(name for line in lines for name in line if name != "prediction"))
    cells = {name: _as_numbers([str(line.get(name, "")) for line in lines]) for name in names}
    cells["prediction"] = [line["prediction"] for line in lines]
    table = [list(cells), *map(list, zip(*cells.values(), strict=True))]
    (_write_xlsx if path.suffix == ".xlsx" else _write_tsv)(table, path)


def _as_numbers(column: list[str]) -> list[str] | list[int]:
    """Whole numbers where all are: VLMEvalKit looks rows up by a number. What a table would round or
    write otherwise stays a text."""
    whole = all(len(cell) <= DIGITS and cell.isdecimal() and str(int(cell)) == cell for cell in column)
    return list(map(int, column)) if whole else column


def _write_tsv(table: list[list], path: Path) -> None:
    """Cells as they are but for NUL, which readers take for the end."""
    text = io.StringIO()
    lines = [[cell.replace("\0", "") if isinstance(cell, str) else cell for cell in line] for line in table]
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(lines)
    write_atomically(path, text.getvalue().encode(errors="replace"))


def _write_xlsx(table: list[list], path: Path) -> None:
    """Every text is a text, also what a spreadsheet would take for a formula, a number or an error."""
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    book = Workbook(write_only=True)
    sheet = book.create_sheet()

    def as_cell(value: str | int) -> object:
        if not isinstance(value, str):
            return value
        text = ILLEGAL_CHARACTERS_RE.sub("", value.encode(errors="replace").decode())
        cell = WriteOnlyCell(sheet, value=text)
        cell.data_type = "s"
        cell.quotePrefix = text.startswith(FORMULA)
        return cell

    for line in table:
        sheet.append(list(map(as_cell, line)))
    buffer = io.BytesIO()
    book.save(buffer)
    write_atomically(path, buffer.getvalue())


def check_form(form: str) -> None:
    """Raises UserError if `form` cannot be written."""
    if form not in FORMS:
        raise UserError(f"evaluate --export is {form!r}, must be {' or '.join(FORMS)}")
    if form == "xlsx":
        require_package("evaluate --export xlsx", "openpyxl", "evaluate")
