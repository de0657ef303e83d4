"""Journals become scores: one table per benchmark and category, side by side over modes and models,
with intervals and an average row; as CSV (one figure a line) and Markdown.

In: finished runs, OUT/MODEL/MODE/BENCHMARK.jsonl. Out: `BenchmarkFigure`s, scores.csv, scores.md.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ivgr.core.atomic_files import write_atomically
from ivgr.core.printable import as_markdown, as_sheet, markdown_table, print_table
from ivgr.core.readers import read_json_lines
from ivgr.core.resampling import Statistic, interval, mean_of_groups, resample
from ivgr.tools.benchmarks.benchmarks import BENCHMARKS, Benchmark
from ivgr.tools.benchmarks.compare import YES_FIGURES, statistic_of, tabulate
from ivgr.tools.benchmarks.scoring import GIVEN_UP, REJECTED
from ivgr.tools.inference.mode_names import Mode
from ivgr.tools.inference.parse_reply import BLOCK

AVERAGE = "Average"
EACH = Benchmark("", "", ())  # whose score is the mean of its rows
# What a line of a journal always has.
LINE = ("index", "question", "options", "gold", "groups", "verdict", "tokens", "crops", "iou", "why")


@dataclass(frozen=True)
class BenchmarkFigure:
    """One score in percent with its 95 % interval; part is "" for the benchmark as a whole, a
    category, or the name of another figure; rows it is of."""

    benchmark: str
    part: str
    value: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True)
class Column:
    """One model in one mode: its figures, and by benchmark what to know of them."""

    model: str
    mode: str
    figures: list[BenchmarkFigure]
    notes: dict[str, dict]

    @property
    def name(self) -> str:
        return f"{self.model} · {self.mode}"


def read_rows(path: Path) -> list[dict]:
    """Returns the lines of a finished journal."""
    return read_json_lines(path, "let `ivgr evaluate` write it again", LINE)


def figures_of(rows: Sequence[dict], name: str, boxes: bool = True) -> list[BenchmarkFigure]:
    """The score of benchmark `name`, of each of its categories, and its further figures: mIoU only
    where there are gold boxes and `boxes` were asked for."""
    benchmark, title = BENCHMARKS[name], BENCHMARKS[name].title
    figures = [_score(rows, benchmark, title, "")]
    for column in benchmark.categories:
        for part in sorted({part for row in rows for part in _parts(row, column[0], benchmark)}):
            figures.append(_score(_only(rows, column[0], part, benchmark), benchmark, title, part))
    if benchmark.average == "F1":
        units = tabulate(rows, benchmark, _verdicts(rows))
        figures += [
            _figure(units, statistic, title, part, len(rows))
            for part, statistic in YES_FIGURES.items()
            if part != "F1"
        ]
    if benchmark.average == "pairs":
        figures.append(_score(rows, EACH, title, "accuracy"))
    boxed = [row for row in rows if row["iou"] is not None]
    if boxed and boxes:
        units = tabulate(boxed, EACH, [row["iou"] for row in boxed])
        figures.append(_figure(units, mean_of_groups, title, "mIoU", len(boxed)))
    return figures


def score_of(rows: Sequence[dict], benchmark: Benchmark) -> float:
    """Returns the benchmark's score in [0, 1]; NaN if no row was judged."""
    return float(statistic_of(benchmark)(tabulate(rows, benchmark, _verdicts(rows)).sum(0)))


def _verdicts(rows: Sequence[dict]) -> list[bool | None]:
    return [row["verdict"] for row in rows]


def _parts(row: dict, column: str, benchmark: Benchmark) -> list[str]:
    """Categories of a row, of which there may be several where each counts for itself."""
    value = row["groups"].get(column, "")
    return [part for part in (value.split(",") if benchmark.average == "F1" else [value]) if part]


def _only(rows: Sequence[dict], column: str, part: str, benchmark: Benchmark) -> list[dict]:
    """The rows of one category, as if they had no other."""
    own = [row for row in rows if part in _parts(row, column, benchmark)]
    return [row | {"groups": row["groups"] | {column: part}} for row in own]


def _score(rows: Sequence[dict], benchmark: Benchmark, title: str, part: str) -> BenchmarkFigure:
    verdicts = _verdicts(rows)
    judged = sum(verdict is not None for verdict in verdicts)
    return _figure(tabulate(rows, benchmark, verdicts), statistic_of(benchmark), title, part, judged)


def _figure(units: np.ndarray, statistic: Statistic, title: str, part: str, rows: int) -> BenchmarkFigure:
    value = float(statistic(units.sum(0)))
    low, high = interval(statistic(resample(units)))
    return BenchmarkFigure(title, part, 100 * value, 100 * low, 100 * high, rows)


def notes_of(rows: Sequence[dict], mode: Mode) -> dict:
    """Returns what to know beside a score: the rows, and how many had no answer block, were not judged, had
    no crops in tool mode, were rejected, or held mathematics that took too long."""
    return {
        "rows": len(rows),
        "without_block": sum(row["answer_from"] != BLOCK for row in rows),
        "unjudged": sum(row["verdict"] is None for row in rows),
        "without_crops": sum(mode == "tool" and not row["crops"] for row in rows),
        "rejected": sum(row["why"].startswith(REJECTED) for row in rows),
        "given_up": sum(row["why"].startswith(GIVEN_UP) for row in rows),
    }


def average_of(columns: Sequence[Column]) -> dict[str, float]:
    """Returns, by column, the mean of the benchmarks' scores over the benchmarks that all columns have."""
    scores = [{f.benchmark: f.value for f in column.figures if not f.part} for column in columns]
    shared = set.intersection(*map(set, scores)) if scores else set()
    return {
        column.name: sum(own[title] for title in shared) / len(shared) if shared else math.nan
        for column, own in zip(columns, scores, strict=True)
    }


def lines_of(columns: Sequence[Column]) -> list[list[str]]:
    """The side-by-side table: header, one line per benchmark and part, the average."""
    known = [{(f.benchmark, f.part): f for f in column.figures} for column in columns]
    keys = sorted({key for own in known for key in own}, key=lambda key: _order(key, known))
    lines = [["benchmark", *(column.name for column in columns)]]
    for title, part in keys:
        lines.append([f"- {part}" if part else title, *(_cell(own.get((title, part))) for own in known)])
    average = average_of(columns)
    return [*lines, [AVERAGE, *(_number(average[column.name]) for column in columns)]]


def _order(key: tuple[str, str], known: list[dict]) -> tuple:
    titles = [benchmark.title for benchmark in BENCHMARKS.values()]
    return titles.index(key[0]), min(list(own).index(key) for own in known if key in own), key[1]


def _cell(figure: BenchmarkFigure | None) -> str:
    if figure is None:
        return "-"
    return f"{_number(figure.value)} [{_number(figure.low)}, {_number(figure.high)}]"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def write_tables(columns: Sequence[Column], folder: Path) -> None:
    """Writes scores.csv and scores.md to `folder`."""
    write_atomically(folder / "scores.csv", _as_csv(columns).encode())
    write_atomically(folder / "scores.md", _as_markdown(lines_of(columns)).encode())


def _as_csv(columns: Sequence[Column]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "mode", "benchmark", "part", "value", "low", "high", "rows"])
    for column in columns:
        for figure in column.figures:
            writer.writerow(
                [column.model, column.mode, *asdict(replace(figure, part=as_sheet(figure.part))).values()]
            )
    for column, value in zip(columns, average_of(columns).values(), strict=True):
        writer.writerow([column.model, column.mode, AVERAGE, "", value, "", "", ""])
    return text.getvalue()


def _as_markdown(lines: list[list[str]]) -> str:
    names, *rest = lines
    escaped = [[as_markdown(name), *figures] for name, *figures in rest]
    return markdown_table([list(map(as_markdown, names)), *escaped])


def print_lines(lines: list[list[str]], title: str) -> None:
    """Prints the lines to the terminal, the first one as the header."""
    print_table(lines[0], lines[1:], title)
