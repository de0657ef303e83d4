"""The options of a multiple choice: by letter, and as they are put to a policy.

In: what a row says of them. Out: texts by letter, or the question with its options below it, the same
in training and in evaluation.
"""

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase as LETTERS

_LETTERED = re.compile(r"\(?([A-Z])[).:](.*)", re.DOTALL)


def letter_options(items: Sequence[object]) -> dict[str, str]:
    """`items` by letter, in order; those that are None keep their place. Letters that all items begin
    with already ("A. a cat") are taken off. ValueError for more items than letters."""
    if len(items) > len(LETTERS):
        raise ValueError(f"{len(items)} options, more than letters")
    texts = {letter: str(item) for letter, item in zip(LETTERS, items, strict=False) if item is not None}
    found = {letter: _LETTERED.fullmatch(text.strip()) for letter, text in texts.items()}
    own = {letter: match[2].strip() for letter, match in found.items() if match and match[1] == letter}
    return own if len(own) == len(texts) and all(own.values()) else texts


def with_options(question: str, options: Mapping[str, str]) -> str:
    """`question` and, unless it lists them itself, its options below it, a line each."""
    if lists_options(question, options):
        return question
    return "\n".join([question, *(f"{letter}. {text}" for letter, text in options.items())])


def lists_options(question: str, options: Mapping[str, str]) -> bool:
    """Whether every option stands in `question` behind its letter: "A. …", "(A) …", "a: …"."""
    said = f" {_squeeze(question)} "
    return all(
        re.search(rf"[\s;,]\(?{re.escape(_squeeze(letter))}[).:][\s;,]*{re.escape(_squeeze(text))}", said)
        for letter, text in options.items()
    )


def _squeeze(text: str) -> str:
    return " ".join(text.split()).casefold()
