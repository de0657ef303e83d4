"""Parser for lists and boxes that people or models wrote as text, of any length.

It refuses text that nests deeper than any benchmark row before it parses it.
"""

import json
import re
from ast import literal_eval

DEPTH = 8  # brackets within one another
# What is not closed is read to its end, so that nothing is read twice.
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*+('?)|\"(?:[^\"\\]|\\.)*+(\"?)", re.DOTALL)
_UNREAD = re.compile(r"[^\[\](){},:\s\w.+-]|[+-]\s*[+-]")


def read_list(text: str) -> list:
    """Parses the list that `text` holds, as JSON or Python; ValueError if it holds none."""
    skeleton = _QUOTED.sub(lambda quoted: "0" if quoted[1] or quoted[2] else quoted[0][0], text)
    if not text.lstrip().startswith("[") or _UNREAD.search(skeleton) or _depth(skeleton) > DEPTH:
        raise ValueError("not a list")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        found = literal_eval(text.strip())
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError("not a list") from error
    if not isinstance(found, list):
        raise ValueError("not a list")
    return found


def _depth(skeleton: str) -> int:
    deepest = depth = 0
    for bracket in re.findall(r"[\[({]|[\])}]", skeleton):
        depth += 1 if bracket in "[({" else -1
        deepest = max(deepest, depth)
    return deepest
