"""What VLMEvalKit (open-compass/VLMEvalKit) makes of a reply, by the rule that it has for a benchmark and
without a judge: with the rule's slips, since figures that are quoted have them.

In: a reply or the answer in it, and a `Row`. Out: a `Verdict`, never undecided. Not rebuilt is what
pandas makes of a file: that an empty cell is "nan", that "None" and "NA" are empty, and that numbers
with gaps among them become floats.
"""

import re
from collections.abc import Callable
from functools import partial

from ivgr.evaluation.options import match_option
from ivgr.tools.benchmarks.benchmarks import Benchmark
from ivgr.tools.benchmarks.fields import Row
from ivgr.tools.benchmarks.scoring import RULES, Verdict, first_letter, read_yes_no, score_box, score_relaxed
from ivgr.tools.inference.parse_reply import BLOCK, read_parts

_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def score_reply(reply: str, row: Row, benchmark: Benchmark) -> Verdict:
    """Scores the untouched reply."""
    found = _BLOCK.search(reply) if benchmark.rule == "first letter" else None
    return _score(found[1].strip().upper() if found else reply, row, benchmark)


def score_answer(reply: str, row: Row, benchmark: Benchmark) -> Verdict:
    """Scores the answer block, as `inference.parse_reply` finds it, or the whole reply if it has none."""
    parts = read_parts(reply)
    if parts.source != BLOCK:
        return score_reply(reply, row, benchmark)
    return _score(parts.answer.upper() if benchmark.rule == "first letter" else parts.answer, row, benchmark)


def _score(text: str, row: Row, benchmark: Benchmark) -> Verdict:
    if row.fault:
        return Verdict("", False, row.fault)
    if not benchmark.in_kit:
        found = RULES[benchmark.rule](text, row.gold, row.options)
        return Verdict(found.predicted, bool(found.right), found.why)
    said, right = KIT_RULES[benchmark.rule](text, row)
    return Verdict(said, right, benchmark.rule)


def _option(text: str, row: Row) -> tuple[str, bool]:
    """A row without options has no letter that could be right."""
    letter = match_option(text, row.options) or ""
    return letter, letter == row.gold != ""


def _first_letter(text: str, row: Row) -> tuple[str, bool]:
    letter = first_letter(text)
    return letter, letter == row.gold != ""


def _yes_no(text: str, row: Row) -> tuple[str, bool]:
    said = read_yes_no(text)
    return said, said.lower() == row.gold.strip().lower() != ""


def _math(text: str, row: Row) -> tuple[str, bool]:
    """MathVista's extraction is a model's; without it a reply counts that is the number itself. A text
    or a list never does: the rule compares another text than the reply."""
    if row.options:
        return _option(text, row)
    numbers = {"integer": int, "float": float}
    if row.kind not in numbers:
        return text, row.gold == "None"
    try:
        return text, numbers[row.kind](text) == numbers[row.kind](row.gold)
    except ValueError:
        return text, False


def _scored_by(rule: Callable[..., Verdict], text: str, row: Row) -> tuple[str, bool]:
    """Scores by `rule`, one of `scoring`, where the kit has the same rule."""
    verdict = rule(text, row.gold, row.options)
    return verdict.predicted, bool(verdict.right)


KIT_RULES: dict[str, Callable[[str, Row], tuple[str, bool]]] = {
    "option": _option,
    "open": _option,
    "first letter": _first_letter,
    "yes or no": _yes_no,
    "relaxed": partial(_scored_by, score_relaxed),
    "math": _math,
    "box": partial(_scored_by, score_box),
}
