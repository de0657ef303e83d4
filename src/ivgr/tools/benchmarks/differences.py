"""`ivgr compare` and `ivgr analyse`: what finished runs differ in.

In: the folders that `ivgr evaluate` wrote. Out: tables on the terminal, and plots.
"""

from pathlib import Path

from ivgr.core.errors import UserError
from ivgr.tools.benchmarks.analyses import bucket_lines, cost_lines, gap_lines, plot_analyses, read_runs
from ivgr.tools.benchmarks.benchmarks import BENCHMARKS
from ivgr.tools.benchmarks.compare import compare_rows
from ivgr.tools.benchmarks.tables import print_lines, read_rows


def compare(run_a: Path, run_b: Path) -> None:
    """Print whether run b is really better than run a, on every benchmark that both have.

    The difference in points with its 95 % interval, the rows that only one got right, and McNemar's p.

    Args:
        run_a: A run's folder (OUT/MODEL/MODE of `ivgr evaluate`), or one of its .jsonl files.
        run_b: The other, with the same benchmarks.
    """
    lines = [["benchmark", "rows", "a", "b", "b - a", "interval", "only a", "only b", "p"]]
    for name, (one, two) in pair_files(run_a, run_b).items():
        found = compare_rows(read_rows(one), read_rows(two), BENCHMARKS[name])
        lines.append(
            [BENCHMARKS[name].title, str(found.rows), f"{found.a:.1f}", f"{found.b:.1f}",
             f"{found.difference:+.1f}", f"[{found.low:+.1f}, {found.high:+.1f}]", str(found.only_a),
             str(found.only_b), f"{found.p:.2g}"]
        )  # fmt: skip
        if found.unjudged:
            print(f"{BENCHMARKS[name].title}: {found.unjudged} rows without a verdict are left out")
    print_lines(lines, f"a: {run_a}   b: {run_b}")


def pair_files(run_a: Path, run_b: Path) -> dict[str, tuple[Path, Path]]:
    """Returns both runs' journals by benchmark, for the benchmarks that both runs have."""
    one, two = (find_journals(run) for run in (run_a, run_b))
    shared = {name: (one[name], two[name]) for name in BENCHMARKS if name in one and name in two}
    if not shared:
        raise UserError(f"compare: {run_a} and {run_b} have no benchmark in common")
    return shared


def find_journals(run: Path) -> dict[str, Path]:
    """Finds the journals of `run`; UserError if it is neither a journal nor a folder of journals."""
    paths = [run] if run.is_file() else sorted(run.glob("*.jsonl"))
    found = {path.stem: path for path in paths if path.suffix == ".jsonl" and path.stem in BENCHMARKS}
    if not found:
        raise UserError(f"{run}: no BENCHMARK.jsonl; give a folder OUT/MODEL/MODE that `ivgr evaluate` wrote")
    return found


def analyse(folder: Path, plot: Path | None = None) -> None:
    """Print what the modes of one model differ in.

    Their scores, what an answer costs, and accuracy by how well the grounded reply's boxes fit.

    Args:
        folder: OUT/MODEL of `ivgr evaluate`, with its modes inside.
        plot: File for the plots (pip install "ivgr[evaluate]").
    """
    runs = read_runs(folder)
    print_lines(gap_lines(runs), "modes less text, in points")
    print_lines(cost_lines(runs), "what an answer costs")
    buckets = bucket_lines(runs)
    if len(buckets) > 1:
        print_lines(buckets, "accuracy by mean best IoU of the grounded reply's boxes")
    if plot is not None:
        plot_analyses(runs, plot)
