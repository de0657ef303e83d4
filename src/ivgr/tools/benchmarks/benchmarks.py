"""The benchmarks that `ivgr evaluate` knows: how their files are called, how an answer is scored
and how the verdicts add up.

A score is the figure that VLMEvalKit (open-compass/VLMEvalKit) puts at the head of its report and that
papers quote: `average` and `group` say how rows become it.
"""

from dataclasses import dataclass
from typing import Literal

from ivgr.core.errors import UserError
from ivgr.tools.benchmarks.grounding import SPLITS

CYCLE, SOURCE, SPLIT = "cycle_category", "source", "split"
PAIR = "pair"  # the group of two rows that only count together
Average = Literal["mean", "pairs", "F1"]


@dataclass(frozen=True)
class Benchmark:
    """title: its name in tables; kit: its name in VLMEvalKit; files: how its files are called, in
    small letters and digits; rule: a key of `scoring.RULES`; average: "mean" of the rows, of the
    "pairs" of which both rows are right, or "F1" of yes over the rows, each as often as it names
    categories; group: the column whose values' means are averaged, "" for one mean; counted: of those
    values the ones that count, if a file has any of them; categories: columns that the table splits
    by, the first name that a file has of each; gold_index: the gold answer is an option's number, from
    0; only: (column, value) that a row must have if the file has the column; in_kit: VLMEvalKit has
    it, and so has a rule of its own for it."""

    title: str
    kit: str
    files: tuple[str, ...]
    rule: str = "option"
    average: Average = "mean"
    group: str = ""
    counted: tuple[str, ...] = ()
    categories: tuple[tuple[str, ...], ...] = (("category",), ("l2-category", "l2_category"))
    gold_index: bool = False
    only: tuple[str, str] | None = None
    in_kit: bool = True

    @property
    def answer_form(self) -> str:
        """Returns the form of answer that is asked for if there are no options."""
        return FORMS.get(self.rule, "Answer with a word or a number.")


FORMS = {
    "yes or no": "Answer yes or no.",
    "box": "Answer with its box as [x1, y1, x2, y2], in thousandths of the picture's width and height.",
}
_CV = (("task", "category"),)

BENCHMARKS = {
    "vstar": Benchmark("V*", "VStarBench", ("vstarbench", "vstar")),
    "hrbench4k": Benchmark("HRBench4K", "HRBench4K", ("hrbench4k",), group=CYCLE),
    "hrbench8k": Benchmark("HRBench8K", "HRBench8K", ("hrbench8k",), group=CYCLE),
    "mme-realworld-lite": Benchmark(
        "MME-RealWorld-Lite", "MME-RealWorld-Lite", ("mmerealworldlite",), rule="first letter"
    ),
    "pope": Benchmark("POPE", "POPE", ("pope",), rule="yes or no", average="F1"),
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
    "treebench": Benchmark("TreeBench", "TreeBench", ("treebench",), rule="first letter"),
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
    "refcoco": Benchmark(
        "RefCOCO", "RefCOCO", ("refcoco",), rule="box", group=SPLIT, counted=SPLITS, categories=((SPLIT,),)
    ),
    "mmvp": Benchmark("MMVP", "MMVP", ("mmvp",), average="pairs"),
    "blink": Benchmark("BLINK", "BLINK", ("blink",), categories=(("category", "sub_task"),)),
    "zoombench": Benchmark("ZoomBench", "ZoomBench", ("zoombench",), rule="open", in_kit=False),
    "visualprobe": Benchmark("VisualProbe", "VisualProbe", ("visualprobe",), rule="open", in_kit=False),
}


def find_benchmark(name: str, key: str = "evaluate --benchmark") -> Benchmark:
    """UserError, which begins with `key`, lists the names if `name` is none."""
    if name not in BENCHMARKS:
        raise UserError(f"{key} is {name!r}, must be among {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
