"""The benchmarks that `ivgr evaluate` knows: how their files are called, how an answer is scored
and how the verdicts add up.

`aggregate` is "mean" of all rows, or "mean of GROUP": the mean over the values of that column of
each one's mean.
"""

from dataclasses import dataclass

from ivgr.errors import UserError

CYCLE, SOURCE = "cycle_category", "source"


@dataclass(frozen=True)
class Benchmark:
    """title: its name in tables; kit: its name in VLMEvalKit; files: how its files are called, in
    small letters and digits; rule: a key of `scoring.RULES`; group: the column whose values' means
    are averaged, "" for the mean of all rows; categories: columns that the table splits by, the
    first name that a file has of each; gold_index: the gold answer is an option's number, from 0;
    only: (column, value) that a row must have if the file has the column."""

    title: str
    kit: str
    files: tuple[str, ...]
    rule: str = "option"
    group: str = ""
    categories: tuple[tuple[str, ...], ...] = (("category",), ("l2-category", "l2_category"))
    gold_index: bool = False
    only: tuple[str, str] | None = None

    @property
    def answer_form(self) -> str:
        """What is asked for where there are no options."""
        return "Answer yes or no." if self.rule == "yes or no" else "Answer with a word or a number."


_CV = (("task", "category"),)

BENCHMARKS = {
    "vstar": Benchmark("V*", "VStarBench", ("vstarbench", "vstar")),
    "hrbench4k": Benchmark("HRBench4K", "HRBench4K", ("hrbench4k",), group=CYCLE),
    "hrbench8k": Benchmark("HRBench8K", "HRBench8K", ("hrbench8k",), group=CYCLE),
    "mme-realworld-lite": Benchmark(
        "MME-RealWorld-Lite", "MME-RealWorld-Lite", ("mmerealworldlite",), rule="first letter"
    ),
    "pope": Benchmark("POPE", "POPE", ("pope",), rule="yes or no"),
    "realworldqa": Benchmark("RealWorldQA", "RealWorldQA", ("realworldqa",), rule="open"),
    "cv-bench-2d": Benchmark(
        "CV-Bench-2D",
        "CV-Bench-2D",
        ("cvbench2d", "cvbench"),
        group=SOURCE,
        categories=_CV,
        only=("type", "2D"),
    ),
    "cv-bench-3d": Benchmark(
        "CV-Bench-3D", "CV-Bench-3D", ("cvbench3d", "cvbench"), categories=_CV, only=("type", "3D")
    ),
    "treebench": Benchmark("TreeBench", "TreeBench", ("treebench",)),
    "chartqa": Benchmark(
        "ChartQA",
        "ChartQA_TEST",
        ("chartqa",),
        rule="relaxed",
        categories=(("split", "type", "human_or_machine"),),
    ),
    "ai2d": Benchmark("AI2D", "AI2D_TEST", ("ai2d",), gold_index=True),
    "mmstar": Benchmark("MMStar", "MMStar", ("mmstar",)),
    "mathvista": Benchmark(
        "MathVista", "MathVista_MINI", ("mathvista",), rule="math", categories=(("task",),)
    ),
}


def find_benchmark(name: str, key: str = "evaluate --benchmark") -> Benchmark:
    """UserError, which begins with `key`, lists the names if `name` is none."""
    if name not in BENCHMARKS:
        raise UserError(f"{key} is {name!r}, must be among {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
