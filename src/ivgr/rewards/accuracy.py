"""R_acc: does the written answer agree with the gold one? Rules first; what they do not
match is a question for a judge."""

import re
import unicodedata

from math_verify import parse, verify

from ivgr.data.sample import Sample
from ivgr.judge.protocol import Agreement
from ivgr.rewards.format import read_answer

_ARTICLES = {"a", "an", "the"}
_QUOTES = " \"'`"
_ENDING = _QUOTES + ".,;:!?"
_LETTER = re.compile(r"\(?([A-Za-z])(?:[.:)].*)?", re.DOTALL)
# What sympy would evaluate for ever: towers of powers, huge exponents, factorials.
_TOWERING = re.compile(r"\^\s*\{?[^{}+*/ -]*(?:\^|[0-9]{4})|[0-9]{4}\s*!|[)\]}]\s*!")


def normalise(answer: str) -> str:
    """Lower case, NFKC, no articles (unless there is nothing else), no quotes around, no
    punctuation at the end, single spaces."""
    words = unicodedata.normalize("NFKC", answer).casefold().split()
    kept = [word for word in words if word not in _ARTICLES] or words
    text = " ".join(kept)
    return text.rstrip(_ENDING).lstrip(_QUOTES) or text


def text_match(answer: str, gold: str) -> bool:
    return normalise(answer) == normalise(gold) != ""


def choice_match(answer: str, gold: str, options: dict[str, str]) -> bool:
    """The text of the gold option, or its letter (as "B", "(B)", "B. a dog", …)."""
    named = [letter for letter, text in options.items() if text_match(answer, text)]
    written = _LETTER.fullmatch(answer.strip())
    letter = named[0] if named else written and written.group(1)
    return bool(letter) and letter.casefold() == gold.strip(" ().").casefold()


def math_match(answer: str, gold: str) -> bool:
    """Equal to the letter, or as mathematics by `math-verify`; what could not be evaluated
    in reasonable time is not equal."""
    if answer.strip() == gold.strip() != "":
        return True
    if _TOWERING.search(answer):
        return False
    parsed = [parse(f"${text}$", parsing_timeout=None) for text in (gold, answer)]
    return all(parsed) and verify(*parsed, timeout_seconds=None)


def rule_match(sample: Sample, answer: str) -> bool:
    """The sample's own check ("text", "choice" or "math") on `answer`."""
    if sample.check == "choice":
        return choice_match(answer, sample.answer, sample.options)
    if sample.check == "math":
        return math_match(answer, sample.answer)
    return text_match(answer, sample.answer)


def read_accuracy(sample: Sample, text: str) -> float | Agreement:
    """R_acc in {0, 1} where the rules suffice, else the question that is left to a judge; a
    response without a non-empty answer block is wrong."""
    answer = read_answer(text)
    if not answer:
        return 0.0
    return 1.0 if rule_match(sample, answer) else Agreement(sample, answer)
