"""The rules that score an answer, each a small function with its source.

In: the answer of a reply (inference/parse_reply.py), the gold answer and the options by letter.
Out: a `Verdict`; `right` is None where only a judge could say, and counts as wrong where there is
none. Where a rule differs from VLMEvalKit's, `vlmevalkit.py` has the latter.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ivgr.core.boxes import iou
from ivgr.evaluation.options import read_option
from ivgr.rewards.accuracy import text_match
from ivgr.rewards.mathematics import compare_math
from ivgr.tools.benchmarks.grounding import HIT, overlap
from ivgr.tools.benchmarks.lists import read_list

_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
)
_LONG = 10  # words of a text in which no fragment of a bracketed letter is looked for
_BRACKETED = ("(a)", "(b)", "(c)", "(d)", "(e)")
_NAMED = re.compile(
    r"(?i:\b(?:answer|option|choice)(?:\s++is)?+)\s*+:?+\s*+[*(]*+(?:([A-E])(?![A-Za-z])|([a-e])(?=[).*\s]*$))"
)
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"(?<!\d)\.(?!\d)")
_FULL_STOPS = 32  # that VLMEvalKit takes out of a text: its flag stands in the place of a count
TOLERANCE = 0.05
GIVEN_UP = "mathematics given up"
REJECTED = "rejected"


@dataclass(frozen=True)
class Verdict:
    """predicted: what was read out of the answer, "" if nothing; why: by which rule."""

    predicted: str
    right: bool | None
    why: str


Rule = Callable[[str, str, Mapping[str, str]], Verdict]


def score_option(answer: str, gold: str, options: Mapping[str, str]) -> Verdict:
    """Scores the option letter (`options.read_option`)."""
    letter = read_option(answer, options)
    return Verdict(letter or "", letter == gold if letter else None, "option" if letter else "no option")


def score_first_letter(answer: str, gold: str, options: Mapping[str, str]) -> Verdict:
    """The first letter A-E of the answer in capitals (MME-RealWorld, Zhang et al., arXiv 2408.13257;
    TreeBench, Wang et al., arXiv 2507.07999; as VLMEvalKit reads an answer block). But the letter that
    the answer states ("Answer: D") goes before the letters of the words that state it, and where
    nothing is written none is read."""
    found = _NAMED.search(answer)
    letter = (found[1] or found[2]).upper() if found else first_letter(answer.strip(" ()\n\t").upper() or "-")
    return Verdict(letter, letter == gold, "first letter" if letter else "no letter")


def first_letter(text: str) -> str:
    """The first of the capitals A-E after the usual prefixes are taken out; without one, that of the
    bracketed small letter of which `text` is a part, which is A for an empty one; "" if it is of none."""
    text = text.strip()
    for prefix in _PREFIXES:
        text = text.replace(prefix, "")
    if found := re.search("[A-E]", text):
        return found[0]
    if len(text.split()) > _LONG:
        return ""
    return next((name[1].upper() for name in _BRACKETED if text.lower() in name), "")


def score_yes_no(answer: str, gold: str, options: Mapping[str, str]) -> Verdict:
    """Yes or No, whichever alone is among the words (POPE, Li et al., arXiv 2305.10355)."""
    said = read_yes_no(answer)
    if not said:
        return Verdict("", None, "neither or both of yes and no")
    return Verdict(said, said.lower() == gold.strip().lower(), "yes or no")


def read_yes_no(text: str) -> str:
    """ "Yes" or "No", whichever alone is among the words, as VLMEvalKit splits them; else ""."""
    words = _strip_punctuation(text.lower()).split()
    said = [name for name in ("Yes", "No") if name.lower() in words]
    return said[0] if len(said) == 1 else ""


def _strip_punctuation(text: str) -> str:
    """As the evaluation of VQA does it (Antol et al., arXiv 1505.00468): a mark with a space
    beside it anywhere in `text`, or any where a comma stands between digits, leaves nothing,
    another one a space; the first full stops that no digit stands beside go."""
    numbers, stripped = _DIGIT_COMMA.search(text), text
    for mark in _MARKS:
        beside = f"{mark} " in text or f" {mark}" in text or numbers
        stripped = stripped.replace(mark, "" if beside else " ")
    return _FULL_STOP.sub("", stripped, count=_FULL_STOPS)


def score_relaxed(answer: str, gold: str, options: Mapping[str, str]) -> Verdict:
    """Numbers within 5 % of the gold one, other texts equal but for case (ChartQA, Masry et al.,
    arXiv 2203.10244, after Methani et al., arXiv 1909.00997); a percentage is a hundredth. Of golds
    that are written as a list one is enough."""
    answer = answer.strip()
    found = [_score_relaxed(answer, one) for one in list_golds(gold)]
    return next((verdict for verdict in found if verdict.right), found[0])


def list_golds(gold: str) -> list[str]:
    """Returns the items if `gold` is written as a list, else `gold` alone."""
    try:
        return list(map(str, read_list(gold))) or [gold]
    except ValueError:
        return [gold]


def _score_relaxed(answer: str, gold: str) -> Verdict:
    gold = gold.strip()
    said, wanted = _read_number(answer), _read_number(gold)
    if said is not None and wanted:
        return Verdict(answer, abs(said - wanted) / abs(wanted) <= TOLERANCE, "number")
    return Verdict(answer, answer.lower() == gold.lower(), "text")


def _read_number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def score_open(answer: str, gold: str, options: Mapping[str, str]) -> Verdict:
    """The option letter where there are options, else the same text but for case, articles and
    punctuation at the end (RealWorldQA)."""
    if options:
        return score_option(answer, gold, options)
    return Verdict(answer, True, "text") if text_match(answer, gold) else Verdict(answer, None, "other text")


def score_math(answer: str, gold: str, options: Mapping[str, str]) -> Verdict:
    """The option letter where there are options, else the same text or equal as mathematics by
    math-verify (MathVista, Lu et al., arXiv 2310.02255, whose own extraction asks a model)."""
    if options:
        return score_option(answer, gold, options)
    if text_match(answer, gold):
        return Verdict(answer, True, "text")
    equal = compare_math(answer, gold)
    why = GIVEN_UP if equal is None else "mathematics" if equal else "not equal"
    return Verdict(answer, equal or None, why)


def score_box(answer: str, gold: str, options: Mapping[str, str]) -> Verdict:
    """The box that the answer writes overlaps the gold one by half of both (RefCOCO, Yu et al.,
    arXiv 1608.00272; gold as `grounding.write_gold` writes it)."""
    shared = overlap(answer, gold) if gold else None
    return Verdict(answer, shared is not None and shared >= HIT, "no box" if shared is None else "box")


RULES: dict[str, Rule] = {
    "option": score_option,
    "first letter": score_first_letter,
    "yes or no": score_yes_no,
    "relaxed": score_relaxed,
    "open": score_open,
    "math": score_math,
    "box": score_box,
}


def mean_best_iou(written: Sequence[Sequence[float]], gold: Sequence[Sequence[float]]) -> float:
    """The best IoU of each gold box among the written ones, averaged (TreeBench's mIoU is the
    mean of this over all rows, Wang et al., arXiv 2507.07999); 0 without a written or gold box."""
    if not written or not gold:
        return 0.0
    return sum(max(iou(target, box) for box in written) for target in gold) / len(gold)
