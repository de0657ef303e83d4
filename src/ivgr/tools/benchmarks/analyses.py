"""The paper's analyses: what the modes differ by, what they cost, and accuracy by the IoU of the
model's own boxes (iVGR, arXiv 2605.31096).

In: the runs of one model by mode, each its journal lines by benchmark. Out: lines of tables, plots.
"""

import statistics
from pathlib import Path

from ivgr.core.errors import UserError, require_package
from ivgr.core.resampling import interval, mean_of_groups, resample
from ivgr.tools.benchmarks.benchmarks import BENCHMARKS
from ivgr.tools.benchmarks.compare import compare_rows, tabulate
from ivgr.tools.benchmarks.tables import EACH, read_rows
from ivgr.tools.inference.mode_names import MODES

EDGES = (0.25, 0.5, 0.75, 1.0)
BUCKETS = ("0", "(0, 0.25]", "(0.25, 0.5]", "(0.5, 0.75]", "(0.75, 1]")

Runs = dict[str, dict[str, list[dict]]]


def read_runs(folder: Path) -> Runs:
    """Reads the runs by mode, then by benchmark; UserError if `folder` holds no mode."""
    runs = {}
    for mode in MODES:
        found = {name: folder / mode / f"{name}.jsonl" for name in BENCHMARKS}
        runs[mode] = {name: read_rows(path) for name, path in found.items() if path.exists()}
    if not any(runs.values()):
        raise UserError(f"{folder}: no text, grounded or tool folder; give OUT/MODEL of `ivgr evaluate`")
    return {mode: found for mode, found in runs.items() if found}


def bucket_of(iou: float) -> int:
    """The bucket's number; one without any overlap is by itself."""
    return 0 if iou <= 0 else 1 + sum(iou > edge for edge in EDGES[:-1])


def bucket_rows(runs: Runs) -> dict[str, list[list[dict]]]:
    """Returns, by mode, the rows whose IoU in the grounded run lies in the bucket."""
    ious = {
        (name, row["index"]): row["iou"]
        for name, rows in runs.get("grounded", {}).items()
        for row in rows
        if row["iou"] is not None
    }
    buckets: dict[str, list[list[dict]]] = {mode: [[] for _ in BUCKETS] for mode in runs}
    for mode, found in runs.items():
        for name, rows in found.items():
            for row in rows:
                if (name, row["index"]) in ious and row["verdict"] is not None:
                    buckets[mode][bucket_of(ious[name, row["index"]])].append(row)
    return buckets


def accuracy_of(rows: list[dict]) -> tuple[float, float, float]:
    """Returns the accuracy in percent with its 95 % interval."""
    units = tabulate(rows, EACH, [row["verdict"] for row in rows])
    low, high = interval(mean_of_groups(resample(units)))
    return 100 * float(mean_of_groups(units.sum(0))), 100 * low, 100 * high


def bucket_lines(runs: Runs) -> list[list[str]]:
    """Returns the table of accuracy by IoU bucket and mode; only its header if no row has gold boxes."""
    buckets = bucket_rows(runs)
    lines = [["IoU", "rows", *buckets]]
    for n, name in enumerate(BUCKETS):
        own = {mode: found[n] for mode, found in buckets.items()}
        if any(own.values()):
            cells = [
                "{:.1f} [{:.1f}, {:.1f}]".format(*accuracy_of(rows)) if rows else "-" for rows in own.values()
            ]
            lines.append([name, str(max(map(len, own.values()))), *cells])
    return lines


def gap_lines(runs: Runs) -> list[list[str]]:
    """Returns each benchmark's score in text mode and the difference of every other mode from it."""
    others = [mode for mode in runs if mode != "text"]
    lines = [["benchmark", "text", *(f"{mode} - text" for mode in others)]]
    for name, rows in runs.get("text", {}).items():
        found = [
            compare_rows(rows, runs[mode][name], BENCHMARKS[name]) for mode in others if name in runs[mode]
        ]
        if len(found) == len(others) and found:
            cells = [f"{d.difference:+.1f} [{d.low:+.1f}, {d.high:+.1f}], p {d.p:.2g}" for d in found]
            lines.append([BENCHMARKS[name].title, f"{found[0].a:.1f}", *cells])
    return lines


def cost_lines(runs: Runs) -> list[list[str]]:
    """Returns the tokens written and the images added per reply."""
    lines = [["benchmark", "mode", "tokens, mean", "median", "most", "crops, mean"]]
    for mode, found in runs.items():
        for name, rows in found.items():
            tokens = [row["tokens"] for row in rows]
            crops = statistics.mean(row["crops"] for row in rows)
            figures = [f"{statistics.mean(tokens):.1f}", f"{statistics.median(tokens):.0f}", str(max(tokens))]
            lines.append([BENCHMARKS[name].title, mode, *figures, f"{crops:.1f}"])
    return lines


def plot_analyses(runs: Runs, path: Path) -> None:
    """Accuracy by IoU bucket, and accuracy over tokens, one line or point per mode."""
    require_package("analyse --plot", "matplotlib", "evaluate")
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(10, 4), layout="constrained")
    left, right = canvas.subplots(1, 2)
    for mode, buckets in bucket_rows(runs).items():
        points = [(n, *accuracy_of(rows)) for n, rows in enumerate(buckets) if rows]
        if points:
            x, y, low, high = zip(*points, strict=True)
            spread = [
                [v - a for v, a in zip(y, low, strict=True)],
                [b - v for v, b in zip(y, high, strict=True)],
            ]
            left.errorbar(x, y, spread, marker="o", capsize=3, label=mode)
    left.set(xlabel="mean best IoU of the grounded reply's boxes", ylabel="accuracy, %")
    left.set_xticks(range(len(BUCKETS)), BUCKETS)
    for mode, found in runs.items():
        rows = [row for rows in found.values() for row in rows if row["verdict"] is not None]
        right.plot(statistics.mean(row["tokens"] for row in rows), accuracy_of(rows)[0], "o", label=mode)
    right.set(xlabel="tokens a reply", ylabel="accuracy over all rows, %")
    left.legend()
    right.legend()
    canvas.savefig(path)
