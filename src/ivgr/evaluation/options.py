"""Which option of a multiple-choice question an answer names: the rule of VLMEvalKit
(open-compass/VLMEvalKit, vlmeval/utils/matching_util.py), so that scores can be compared.

In: the answer and the options by letter. Out: a letter, or None where only a judge could say.
"""

import re
from collections.abc import Mapping

_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_STATED = re.compile(r"answer\s+is\s+\**([A-D])", re.IGNORECASE)
LAST = 4


def match_option(answer: str, choices: Mapping[str, str]) -> str | None:
    """The letter of the option that `answer` names.

    By the first of these that finds one: the only letter of `choices` that stands as a word,
    punctuation read as spaces, if it first does so among the last four words; the letter after
    "answer is" (A-D in either case, also as the beginning of a word); the only option whose text
    the answer contains, case ignored, if the answer is no longer than twice all texts together.
    An option without text is never found by it.
    """
    return (
        _letter_at_the_end(answer, choices) or _stated_letter(answer, choices) or _only_text(answer, choices)
    )


def _letter_at_the_end(answer: str, choices: Mapping[str, str]) -> str | None:
    words = answer.translate(_PUNCTUATION).split()
    named = [letter for letter in choices if letter in words]
    return named[0] if len(named) == 1 and words.index(named[0]) >= len(words) - LAST else None


def _stated_letter(answer: str, choices: Mapping[str, str]) -> str | None:
    found = _STATED.search(answer)
    letter = found.group(1).upper() if found else None
    return letter if letter in choices else None


def _only_text(answer: str, choices: Mapping[str, str]) -> str | None:
    if len(answer) > 2 * sum(map(len, choices.values())):
        return None
    said = answer.lower()
    named = [letter for letter, text in choices.items() if text and text.lower() in said]
    return named[0] if len(named) == 1 else None
