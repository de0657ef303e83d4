"""`ivgr score`: stored predictions on a benchmark, without a model.

In: a file of predictions and the benchmark's own. Out: two figures, VLMEvalKit's headline on the untouched
replies and the same rule on the answers in them, of the whole and by category.
"""

import math
from collections.abc import Callable
from pathlib import Path

from ivgr.core.atomic_files import write_atomically
from ivgr.core.errors import UserError
from ivgr.core.printable import as_json, brief, printable
from ivgr.tools.benchmarks.benchmarks import BENCHMARKS, Benchmark, find_benchmark
from ivgr.tools.benchmarks.fields import Row
from ivgr.tools.benchmarks.find_files import find_files, open_rows
from ivgr.tools.benchmarks.predictions import read_predictions
from ivgr.tools.benchmarks.scoring import Verdict
from ivgr.tools.benchmarks.tables import figures_of, print_lines
from ivgr.tools.benchmarks.vlmevalkit import score_answer, score_reply
from ivgr.tools.inference.parse_reply import BLOCK, read_parts


def score(predictions: Path, benchmark: str = "", data: Path | None = None, json: Path | None = None) -> None:
    """Score stored predictions on a benchmark, without a model.

    kit_score is VLMEvalKit's headline figure on the untouched replies, in percent; score is the same
    rule on what stands in the answer block, where there is one.

    Args:
        predictions: A .jsonl with index and prediction on each line, a .jsonl that `ivgr evaluate` wrote, or
            VLMEvalKit's .xlsx or .tsv.
        benchmark: Its name, such as vstar; a wrong one lists them all.
        data: The benchmark's .tsv (VLMEvalKit), .parquet or .json, or a folder with such, called as usual.
        json: Also write the figures there.
    """
    if not benchmark or data is None:
        raise UserError(f"score: --benchmark (of {', '.join(BENCHMARKS)}) and --data are needed")
    known = find_benchmark(benchmark, "score --benchmark")
    replies = read_predictions(predictions)
    rows = list(open_rows(find_files(data, known), known, asked=False).texts())
    report = report_on(replies, rows, benchmark, predictions)
    if json is not None:
        write_atomically(json, as_json(report).encode() + b"\n")
    _print(report, known, predictions)


def report_on(replies: dict[str, str], rows: list[Row], name: str, path: Path) -> dict:
    """What the JSON holds: kit_score and score in percent, rows that were scored, missing ones without a
    prediction, faulty ones that count as wrong, replies without_block, and both figures by part.
    UserError if a reply is to no row."""
    known = {row.index for row in rows}
    odd = next((index for index in replies if index not in known), None)
    if odd is not None:
        raise UserError(
            f"{path}: index {brief(odd)} is none of {BENCHMARKS[name].title}'s {len(rows)} rows "
            f"(first {brief(rows[0].index)}, last {brief(rows[-1].index)}); give the file it was asked from"
        )
    asked = [row for row in rows if row.index in replies]
    kit = _figures(asked, replies, name, score_reply)
    own = _figures(asked, replies, name, score_answer)
    return {
        "benchmark": name,
        "kit_score": kit[""][0],
        "score": own[""][0],
        "rows": len(asked),
        "missing": len(rows) - len(asked),
        "faulty": sum(bool(row.fault) for row in asked),
        "without_block": sum(read_parts(replies[row.index]).source != BLOCK for row in asked),
        "in_kit": BENCHMARKS[name].in_kit,
        "parts": {
            part: {"kit_score": value, "score": own[part][0], "rows": count}
            for part, (value, count) in kit.items()
            if part
        },
    }


def _figures(
    rows: list[Row], replies: dict[str, str], name: str, rule: Callable[[str, Row, Benchmark], Verdict]
) -> dict[str, tuple[float | None, int]]:
    """Value and rows of each figure, by part; None where there is nothing to average."""
    lines = []
    for row in rows:
        verdict = rule(replies[row.index], row, BENCHMARKS[name])
        lines.append(vars(row) | {"verdict": verdict.right, "predicted": verdict.predicted, "iou": None})
    return {figure.part: (_known(figure.value), figure.rows) for figure in figures_of(lines, name)}


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _print(report: dict, benchmark: Benchmark, path: Path) -> None:
    lines = [["", "rows", "kit_score", "score"]]
    for part, found in {benchmark.title: report, **report["parts"]}.items():
        figures = [found["kit_score"], found["score"]]
        lines.append(
            [part, str(found["rows"]), *("-" if value is None else f"{value:.2f}" for value in figures)]
        )
    print_lines(lines, f"{printable(str(path))}, in percent")
    said = {
        "missing": "rows of the benchmark have no prediction (left out)",
        "faulty": "rows cannot be asked or scored (wrong)",
        "without_block": "replies have no answer block (score takes them whole)",
    }
    for key, text in said.items():
        if report[key]:
            print(f"{report[key]} {text}")
    if not benchmark.in_kit:
        print(
            f"VLMEvalKit has no {benchmark.title}: kit_score is the rule of `ivgr evaluate` on whole replies"
        )
