"""The uncertainty of scores: bootstrap intervals of one run, and paired differences of two.

In: journal lines of one benchmark. Out: intervals, differences, McNemar's exact p.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ivgr.core.errors import UserError
from ivgr.core.resampling import Statistic, interval, mean_of_groups, resample
from ivgr.tools.benchmarks.benchmarks import CYCLE, PAIR, Benchmark


def statistic_of(benchmark: Benchmark) -> Statistic:
    """Returns the function from the column sums of `tabulate` to the benchmark's score."""
    return YES_FIGURES["F1"] if benchmark.average == "F1" else mean_of_groups


def tabulate(rows: Sequence[dict], benchmark: Benchmark, hits: Sequence[float | None]) -> np.ndarray:
    """Hits and counts of each group (U, 2G), a unit for every row, but one for all cycles of a
    question and one for a pair, which are not independent of one another; a hit that is None counts
    nowhere. For F1 what `tabulate_yes` says."""
    if benchmark.average == "F1":
        return tabulate_yes(rows, benchmark, hits)
    if benchmark.average == "pairs":
        rows, hits = join_pairs(rows, hits)
    groups = [row["groups"].get(benchmark.group, "") for row in rows]
    counted = set(groups) & set(benchmark.counted) or set(groups)
    names = {name: n for n, name in enumerate(sorted(counted))}
    keys = [_unit(row, n, benchmark) for n, row in enumerate(rows)]
    units = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    table = np.zeros((len(units), 2 * len(names)))
    for key, group, hit in zip(keys, groups, hits, strict=True):
        if hit is not None and group in names:
            table[units[key], names[group]] += hit
            table[units[key], len(names) + names[group]] += 1
    return table


def join_pairs(rows: Sequence[dict], hits: Sequence[float | None]) -> tuple[list[dict], list[float | None]]:
    """The first row of each pair, right if both are; half a pair, and one not judged, has no hit."""
    pairs: dict[str, list[tuple[dict, float | None]]] = {}
    for row, hit in zip(rows, hits, strict=True):
        pairs.setdefault(row["groups"][PAIR], []).append((row, hit))
    joined = []
    for pair in pairs.values():
        known = [hit for _, hit in pair if hit is not None]
        joined.append(float(all(known)) if len(known) == 2 else None)
    return [pair[0][0] for pair in pairs.values()], joined


def tabulate_yes(rows: Sequence[dict], benchmark: Benchmark, hits: Sequence[float | None]) -> np.ndarray:
    """Columns (U, 5): yes said and true, yes said, yes true, right, counted; a row as often as it names
    categories, with commas between them. What is neither yes nor no is no yes."""
    column = benchmark.categories[0][0]
    table = np.zeros((len(rows), 5))
    for n, (row, hit) in enumerate(zip(rows, hits, strict=True)):
        if hit is not None:
            true = row["gold"].strip().lower() == "yes"
            said = true if hit else row["predicted"] == "Yes"
            table[n] = [said and true, said, true, hit, 1]
            table[n] *= len(row["groups"].get(column, "").split(","))
    return table


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return part / np.maximum(whole, 1)


# Of the columns of `tabulate_yes` (POPE, Li et al., arXiv 2305.10355); 0 where undefined.
YES_FIGURES: dict[str, Statistic] = {
    "F1": lambda sums: _ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2]),
    "accuracy": lambda sums: _ratio(sums[..., 3], sums[..., 4]),
    "precision": lambda sums: _ratio(sums[..., 0], sums[..., 1]),
    "recall": lambda sums: _ratio(sums[..., 0], sums[..., 2]),
}


def _unit(row: dict, number: int, benchmark: Benchmark) -> object:
    """Returns the same unit for the same question with the same options in another order."""
    if benchmark.group != CYCLE:
        return number
    return row["question"], tuple(sorted(row["options"].values()))


@dataclass(frozen=True)
class Difference:
    """The score of run b minus that of run a on `rows` rows, in percent, with a 95 % interval.

    only_a and only_b count the rows that only one run got right; p is McNemar's exact test, two-sided.
    Rows that were not judged are left out.
    """

    rows: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    only_a: int
    only_b: int
    p: float
    unjudged: int


def mcnemar(only_a: int, only_b: int) -> float:
    """Returns the two-sided p value of McNemar's exact test (McNemar, Psychometrika 12, 1947).

    It is the probability, if both runs were equally good, that the rows that only one run got right split
    at least as unevenly: a binomial with probability one half.
    """
    count, fewer = only_a + only_b, min(only_a, only_b)
    ways = tail = 1  # to get k heads, and at most k
    for k in range(fewer):
        ways = ways * (count - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**count)


def compare_rows(a: Sequence[dict], b: Sequence[dict], benchmark: Benchmark) -> Difference:
    """Returns the paired difference of two runs; UserError if their rows are not the same, or if no row was
    judged in both."""
    other = {row["index"]: row for row in b}
    if len(a) != len(b) or any(_asked(row) != _asked(other.get(row["index"])) for row in a):
        raise UserError(
            f"compare: the two runs of {benchmark.title} ({len(a)} and {len(b)} rows) are not of the same "
            "rows; evaluate both, to the end, on the same file"
        )
    pairs = [(row, other[row["index"]]) for row in a]
    judged = [(x, y) for x, y in pairs if x["verdict"] is not None and y["verdict"] is not None]
    if not judged:
        raise UserError(f"compare: no row of {benchmark.title} was judged in both runs")
    hits = [[pair[side]["verdict"] for pair in judged] for side in (0, 1)]
    tables = [tabulate([pair[side] for pair in judged], benchmark, hits[side]) for side in (0, 1)]
    width = tables[0].shape[1]
    sums = resample(np.concatenate(tables, 1))
    statistic = statistic_of(benchmark)
    low, high = interval(statistic(sums[:, width:]) - statistic(sums[:, :width]))
    one, two = (100 * float(statistic(table.sum(0))) for table in tables)
    only_a, only_b = (sum(x > y for x, y in zip(p, q, strict=True)) for p, q in (hits, hits[::-1]))
    return Difference(
        len(judged), one, two, two - one, 100 * low, 100 * high, only_a, only_b, mcnemar(only_a, only_b),
        len(pairs) - len(judged),
    )  # fmt: skip


def _asked(row: dict | None) -> tuple | None:
    return (row["question"], row["gold"]) if row else None
