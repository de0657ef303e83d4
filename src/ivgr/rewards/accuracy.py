"""R_acc: does the written answer agree with the gold one? Rules first, judge for the rest."""

import re
import unicodedata

from math_verify import parse, verify

from ivgr.data.sample import Sample
from ivgr.judge.protocol import Judge
from ivgr.rewards.format import read_answer

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_OUTER = " \t\r\n.,;:!?\"'`"
_LETTER = re.compile(r"\(?([A-Za-z])(?:[.:)].*)?", re.DOTALL)


def normalise(answer: str) -> str:
    """Lower case, NFKC, no articles, no outer punctuation, single spaces."""
    text = unicodedata.normalize("NFKC", answer).casefold()
    return " ".join(_ARTICLES.sub(" ", text).split()).strip(_OUTER)


def text_match(answer: str, gold: str) -> bool:
    return normalise(answer) == normalise(gold) != ""


def choice_match(answer: str, gold: str, options: dict[str, str]) -> bool:
    """The option's letter (as "B", "(B)", "B. a dog", …) or its text."""
    gold_letter = gold.strip().strip("().").upper()
    match = _LETTER.fullmatch(answer.strip())
    if match and match.group(1).upper() in options:
        return match.group(1).upper() == gold_letter
    return gold_letter in options and text_match(answer, options[gold_letter])


def math_match(answer: str, gold: str) -> bool:
    """Equal as text, or as mathematics by `math-verify`."""
    if text_match(answer, gold):
        return True
    parsed = [parse(text, parsing_timeout=None) for text in (f"${gold}$", f"${answer}$")]
    return all(parsed) and verify(*parsed, timeout_seconds=None)


def rule_match(sample: Sample, answer: str) -> bool:
    """The sample's own check ("text", "choice" or "math") on `answer`."""
    if sample.check == "choice":
        return choice_match(answer, sample.answer, sample.options)
    if sample.check == "math":
        return math_match(answer, sample.answer)
    return text_match(answer, sample.answer)


def accuracy_reward(sample: Sample, text: str, judge: Judge) -> float:
    """R_acc in {0, 1}; a response without a non-empty answer block is wrong."""
    answer = read_answer(text)
    return float(bool(answer) and (rule_match(sample, answer) or judge.agree(sample, answer)))
