"""Journals become scores: a table a benchmark and category, side by side over modes and models,
with intervals and an average row; as CSV (one figure a line) and Markdown.

In: finished runs, OUT/MODEL/MODE/BENCHMARK.jsonl. Out: `Figure`s, scores.csv, scores.md.
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ivgr.evaluation.benchmarks import BENCHMARKS, Benchmark
from ivgr.evaluation.compare import Statistic, interval, mean_of_groups, resample, tabulate
from ivgr.evaluation.run import REJECTED
from ivgr.files import write_atomically
from ivgr.inference.modes import Mode
from ivgr.inference.reading import BLOCK
from ivgr.printable import as_markdown, print_table
from ivgr.readers import read_json_lines

AVERAGE = "Average"
# What a line of a journal always has.
LINE = ("index", "question", "options", "gold", "groups", "verdict", "tokens", "crops", "iou", "why")


@dataclass(frozen=True)
class Figure:
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
    figures: list[Figure]
    notes: dict[str, dict]

    @property
    def name(self) -> str:
        return f"{self.model} · {self.mode}"


def read_rows(path: Path) -> list[dict]:
    """The lines of a finished journal."""
    return read_json_lines(path, "let `ivgr evaluate` write it again", LINE)


def figures_of(rows: Sequence[dict], name: str, boxes: bool = True) -> list[Figure]:
    """The score of benchmark `name`, of each of its categories, and its further figures: mIoU only
    where there are gold boxes and `boxes` were asked for."""
    benchmark, title = BENCHMARKS[name], BENCHMARKS[name].title
    figures = [_score(rows, benchmark, title, "")]
    for column in benchmark.categories:
        for part in sorted({part for row in rows for part in _parts(row, column[0])}):
            own = [row for row in rows if part in _parts(row, column[0])]
            figures.append(_score(own, benchmark, title, part))
    if benchmark.rule == "yes or no":
        figures += _yes_figures(rows, title)
    boxed = [row for row in rows if row["iou"] is not None]
    if boxed and boxes:
        overlaps = [row["iou"] for row in boxed]
        figures.append(
            _figure(
                tabulate(boxed, Benchmark("", "", ()), overlaps), mean_of_groups, title, "mIoU", len(boxed)
            )
        )
    return figures


def score_of(rows: Sequence[dict], benchmark: Benchmark) -> float:
    """The benchmark's score, in [0, 1]; NaN where no row was judged."""
    return float(mean_of_groups(tabulate(rows, benchmark, [row["verdict"] for row in rows]).sum(0)))


def _parts(row: dict, column: str) -> list[str]:
    """Categories of a row: POPE writes several with commas between them."""
    value = row["groups"].get(column, "")
    parts = value.split(",") if set(value.split(",")) <= {"adversarial", "popular", "random"} else [value]
    return [part for part in parts if part]


def _score(rows: Sequence[dict], benchmark: Benchmark, title: str, part: str) -> Figure:
    verdicts = [row["verdict"] for row in rows]
    judged = sum(verdict is not None for verdict in verdicts)
    return _figure(tabulate(rows, benchmark, verdicts), mean_of_groups, title, part, judged)


def _figure(units: np.ndarray, statistic: Statistic, title: str, part: str, rows: int) -> Figure:
    value = float(statistic(units.sum(0)))
    low, high = interval(statistic(resample(units)))
    return Figure(title, part, 100 * value, 100 * low, 100 * high, rows)


def _yes_figures(rows: Sequence[dict], title: str) -> list[Figure]:
    """Precision, recall and F1 of "yes" (POPE, Li et al., arXiv 2305.10355); 0 where undefined.
    What is neither yes nor no counts as no."""
    said = np.array([row["predicted"] == "Yes" for row in rows])
    true = np.array([row["gold"].strip().lower() == "yes" for row in rows])
    units = np.stack([said & true, said, true], 1).astype(float)
    return [_figure(units, statistic, title, name, len(rows)) for name, statistic in YES_FIGURES.items()]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return part / np.maximum(whole, 1)


YES_FIGURES: dict[str, Statistic] = {
    "precision": lambda sums: _ratio(sums[..., 0], sums[..., 1]),
    "recall": lambda sums: _ratio(sums[..., 0], sums[..., 2]),
    "F1": lambda sums: _ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2]),
}


def notes_of(rows: Sequence[dict], mode: Mode) -> dict:
    """What is to be known beside a score: rows, how many had no answer block, were not judged, did
    without crops in tool mode, or were rejected."""
    return {
        "rows": len(rows),
        "without_block": sum(row["answer_from"] != BLOCK for row in rows),
        "unjudged": sum(row["verdict"] is None for row in rows),
        "without_crops": sum(mode == "tool" and not row["crops"] for row in rows),
        "rejected": sum(row["why"].startswith(REJECTED) for row in rows),
    }


def average_of(columns: Sequence[Column]) -> dict[str, float]:
    """By column, the mean of the benchmarks' scores; only over those that all columns have."""
    scores = [{f.benchmark: f.value for f in column.figures if not f.part} for column in columns]
    shared = set.intersection(*map(set, scores)) if scores else set()
    return {
        column.name: sum(own[title] for title in shared) / len(shared) if shared else math.nan
        for column, own in zip(columns, scores, strict=True)
    }


def lines_of(columns: Sequence[Column]) -> list[list[str]]:
    """The side-by-side table: header, a line a benchmark and part, the average."""
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


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    return f"{_number(figure.value)} [{_number(figure.low)}, {_number(figure.high)}]"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def write_tables(columns: Sequence[Column], folder: Path) -> None:
    """scores.csv and scores.md in `folder`."""
    write_atomically(folder / "scores.csv", _as_csv(columns).encode())
    write_atomically(folder / "scores.md", _as_markdown(lines_of(columns)).encode())


def _as_csv(columns: Iterable[Column]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "mode", "benchmark", "part", "value", "low", "high", "rows"])
    for column in columns:
        for figure in column.figures:
            writer.writerow([column.model, column.mode, *asdict(figure).values()])
    for column, value in zip(columns, average_of(columns).values(), strict=True):
        writer.writerow([column.model, column.mode, AVERAGE, "", value, "", "", ""])
    return text.getvalue()


def _as_markdown(lines: list[list[str]]) -> str:
    names, *rest = lines
    table = [list(map(as_markdown, names)), ["---"] * len(names)]
    table += [[as_markdown(name), *figures] for name, *figures in rest]
    return "".join(f"| {' | '.join(line)} |\n" for line in table)


def print_lines(lines: list[list[str]], title: str) -> None:
    """The lines on the terminal, the first as header."""
    print_table(lines[0], lines[1:], title)
