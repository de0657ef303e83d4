"""Reading a response of any model: one that was trained to the form, or a base model.

In: the text. Out: its reasoning, what is its answer, and where that was found.
"""

from dataclasses import dataclass

from ivgr.core.response import read_answer, read_think

BLOCK, AFTER_THINK, WHOLE = "answer block", "after think", "whole reply"
NOTES = {
    BLOCK: [],
    AFTER_THINK: ["no complete answer block: the answer is what follows </think>"],
    WHOLE: ["no answer block: the answer is the whole reply"],
}


@dataclass(frozen=True)
class Parts:
    """source is where the answer was found: BLOCK, AFTER_THINK or WHOLE."""

    think: str
    answer: str
    source: str


def read_parts(text: str) -> Parts:
    """The answer is the first complete answer block behind the last `</think>`, else what follows
    that, else the whole text, so that a model that was not taught the form is scored too."""
    think = _read_reasoning(text)
    _, closed, rest = text.rpartition("</think>")
    if "</answer>" in rest.partition("<answer>")[2]:
        return Parts(think, read_answer(text), BLOCK)
    answer = rest.replace("<answer>", "").replace("</answer>", "").strip()
    return Parts(think, answer, AFTER_THINK if closed else WHOLE)


def _read_reasoning(text: str) -> str:
    """The first think block, which a chat template may have opened itself."""
    before, closed, _ = text.partition("</think>")
    return before.strip() if closed and "<think>" not in before else read_think(text).strip()
