"""Whether text can be shown without harm."""

import re

HARMFUL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def harmless(output: str, *expected: str) -> str:
    """`output`, which holds no command to the terminal and every `expected` text, wrapped or not."""
    assert not HARMFUL.search(output)
    squeezed = re.sub(r"[\s│┃|]", "", output)
    for text in expected:
        assert re.sub(r"[\s│┃|]", "", text) in squeezed
    return output
