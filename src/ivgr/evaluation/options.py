"""Which option of a multiple-choice question an answer names: the rule of VLMEvalKit
(open-compass/VLMEvalKit, vlmeval/utils/matching_util.py), so that scores can be compared, and the same
without what is a slip in it.

In: the answer and the options by letter. Out: a letter, "Z" where the answer names none on purpose, or
None where only a judge could say.
"""

import re
from collections.abc import Mapping

NO_OPTION = "Z"
# Phrases that VLMEvalKit takes for a refusal, and its mark of a reply that never came.
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
FAILED = "Failed to obtain answer via API"
LAST = 4

_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_STATED = re.compile(r"answer\s+is\s+\**([A-D])", re.IGNORECASE)
_STATED_CAPITAL = re.compile(r"(?i:answer\s+is)\s+\**([A-D])(?![A-Za-z])")
_STATED_WORD = re.compile(r"answer\s+is\s+\**([A-D])(?![A-Za-z])", re.IGNORECASE)


def match_option(answer: str, choices: Mapping[str, str]) -> str | None:
    """The letter of the option that `answer` names, as VLMEvalKit reads it; "Z" for a refusal.

    By the first of these that finds one: "Z" for a phrase of `REFUSALS`; the only letter of `choices`
    that stands as a word, punctuation read as spaces, if it first does so among the last four words;
    "Z" if it alone stands so; the letter after "answer is" (A-D in either case, also as the beginning
    of a word); the only option whose text the answer contains, case ignored, if the answer is no
    longer than twice all texts together. An option without text is never found by it.
    """
    return _marked(answer, choices) or _stated(_STATED, answer, choices) or _only_text(answer, choices)


def read_option(answer: str, choices: Mapping[str, str]) -> str | None:
    """Reads as `match_option` does, except that a word is no letter: after "answer is", a single capital
    comes before the options' texts, a small letter after them, and the beginning of a word is none."""
    return (
        _marked(answer, choices)
        or _stated(_STATED_CAPITAL, answer, choices)
        or _only_text(answer, choices)
        or _stated(_STATED_WORD, answer, choices)
    )


def _marked(answer: str, choices: Mapping[str, str]) -> str | None:
    """A refusal, or a letter that stands by itself."""
    if FAILED in answer:
        return None
    if any(phrase in answer for phrase in REFUSALS):
        return NO_OPTION
    words = answer.translate(_PUNCTUATION).split()
    named = [letter for letter in choices if letter in words]
    if not named and NO_OPTION in words:
        return NO_OPTION
    return named[0] if len(named) == 1 and words.index(named[0]) >= len(words) - LAST else None


def _stated(pattern: re.Pattern, answer: str, choices: Mapping[str, str]) -> str | None:
    found = None if FAILED in answer else pattern.search(answer)
    letter = found.group(1).upper() if found else None
    return letter if letter in choices else None


def _only_text(answer: str, choices: Mapping[str, str]) -> str | None:
    said = answer.lower()
    if len(said) > 2 * sum(map(len, choices.values())):
        return None
    named = [letter for letter, text in choices.items() if text and text.lower() in said]
    return named[0] if len(named) == 1 else None
