"""R_acc: does the written answer agree with the gold one? Rules first; what they do not
match is a question for a judge."""

import re
import unicodedata
from collections.abc import Iterable

from ivgr.core.query import Query, Rollout
from ivgr.core.response import read_answer
from ivgr.core.sample import Sample
from ivgr.judge.protocol import Agreement
from ivgr.rewards import mathematics
from ivgr.rewards.mathematics import compare_math, math_match

__all__ = ["choice_match", "math_match", "normalise", "prepare", "read_accuracy", "rule_match", "text_match"]

_ARTICLES = {"a", "an", "the"}
_QUOTES = " \"'`"
_ENDING = _QUOTES + ".,;:!?"
_LETTER = re.compile(r"\(?([A-Za-z])(?:[.:)].*)?", re.DOTALL)


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


def prepare(samples: Iterable[Sample]) -> None:
    """Starts what comparing their answers will need, and does not wait for it."""
    if any(sample.check == "math" for sample in samples):
        mathematics.start()


def rule_match(sample: Sample, answer: str) -> bool | None:
    """The sample's own check ("text", "choice" or "math") on `answer`; None if its mathematics was
    given up, which is not a match."""
    if sample.check == "choice":
        return choice_match(answer, sample.answer, sample.options)
    if sample.check == "math":
        return compare_math(answer, sample.answer)
    return text_match(answer, sample.answer)


def read_accuracy(sample: Sample, text: str) -> float | Agreement:
    """R_acc in {0, 1} where the rules suffice, else the question that is left to a judge; a
    response without a non-empty answer block is wrong."""
    answer = read_answer(text)
    if not answer:
        return 0.0
    matched = rule_match(sample, answer)
    return 1.0 if matched else Agreement(sample, answer, given_up=matched is None)


def rate_accuracy(rollout: Rollout, query: Query) -> float | Agreement:
    """R_acc of a rollout, see `read_accuracy`; notes whether its mathematics was given up."""
    accuracy = read_accuracy(query.sample, rollout.text)
    if isinstance(accuracy, Agreement):
        rollout.given_up = accuracy.given_up
    return accuracy
