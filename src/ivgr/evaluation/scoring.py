"""By which rule an answer is scored: each a small function with its source.

In: what of a reply is its answer (inference/reading.py), the gold answer and the options by letter.
Out: a `Verdict`; `right` is None where only a judge could say, and counts as wrong where there is
none.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ivgr.evaluation.options import match_option
from ivgr.rewards.accuracy import math_match, text_match
from ivgr.rewards.boxes import iou

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
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
TOLERANCE = 0.05


@dataclass(frozen=True)
class Verdict:
    """predicted: what was read out of the answer, "" if nothing; why: by which rule."""

    predicted: str
    right: bool | None
    why: str


Rule = Callable[[str, str, Mapping[str, str]], Verdict]


def score_option(answer: str, gold: str, options: Mapping[str, str]) -> Verdict:
    """The option letter (VLMEvalKit, `match_option`)."""
    letter = match_option(answer, options)
    return Verdict(letter or "", letter == gold if letter else None, "option" if letter else "no option")


def score_first_letter(answer: str, gold: str, options: Mapping[str, str]) -> Verdict:
    """The first letter A-E after the usual prefixes are taken out (MME-RealWorld, Zhang et al.,
    arXiv 2408.13257, and VLMEvalKit; whose list of prefixes runs two pairs of them together, here
    they are apart). Nothing but a small letter, in brackets or not, is that letter."""
    for prefix in _PREFIXES:
        answer = answer.replace(prefix, "")
    found = re.search("[A-E]", answer) or re.fullmatch(r"\s*\(?([a-e])\)?\s*", answer)
    letter = found.group(found.lastindex or 0).upper() if found else ""
    return Verdict(letter, letter == gold, "first letter" if letter else "no letter")


def score_yes_no(answer: str, gold: str, options: Mapping[str, str]) -> Verdict:
    """Yes or No, whichever alone is among the words (POPE, Li et al., arXiv 2305.10355; words as
    VLMEvalKit splits them)."""
    words = _strip_punctuation(answer.lower()).split()
    said = [name for name in ("Yes", "No") if name.lower() in words]
    if len(said) != 1:
        return Verdict("", None, "neither or both of yes and no")
    return Verdict(said[0], said[0].lower() == gold.strip().lower(), "yes or no")


def _strip_punctuation(text: str) -> str:
    """As the evaluation of VQA does it (Antol et al., arXiv 1505.00468): a mark with a space
    beside it anywhere in `text`, or any where a comma stands between digits, leaves nothing,
    another one a space; a full stop not before a digit goes."""
    numbers, stripped = _DIGIT_COMMA.search(text), text
    for mark in _MARKS:
        beside = f"{mark} " in text or f" {mark}" in text or numbers
        stripped = stripped.replace(mark, "" if beside else " ")
    return _FULL_STOP.sub("", stripped)


def score_relaxed(answer: str, gold: str, options: Mapping[str, str]) -> Verdict:
    """Numbers within 5 % of the gold one, other texts equal but for case (ChartQA, Masry et al.,
    arXiv 2203.10244, after Methani et al., arXiv 1909.00997); a percentage is a hundredth."""
    answer, gold = answer.strip(), gold.strip()
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
    equal = text_match(answer, gold) or math_match(answer, gold)
    return Verdict(answer, True, "mathematics") if equal else Verdict(answer, None, "not equal")


RULES: dict[str, Rule] = {
    "option": score_option,
    "first letter": score_first_letter,
    "yes or no": score_yes_no,
    "relaxed": score_relaxed,
    "open": score_open,
    "math": score_math,
}


def mean_best_iou(written: Sequence[Sequence[float]], gold: Sequence[Sequence[float]]) -> float:
    """The best IoU of each gold box among the written ones, averaged (TreeBench's mIoU is the
    mean of this over all rows, Wang et al., arXiv 2507.07999); 0 without a written or gold box."""
    if not written or not gold:
        return 0.0
    return sum(max(iou(target, box) for box in written) for target in gold) / len(gold)
