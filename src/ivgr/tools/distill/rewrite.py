"""Grounded reasoning said again without boxes, several ways.

In: `Candidate`s. Out: textual responses, `<think>…</think><answer>…</answer>`, which nobody
has checked yet.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from ivgr.core.errors import UserError
from ivgr.core.response import format_reward
from ivgr.core.seeding import derive_seed
from ivgr.tools.distill.collect import Candidate

T = TypeVar("T")


class Rewriter(Protocol):
    def rewrite(self, items: Sequence[Candidate], k: int, seed: int) -> list[list[str]]:
        """Returns at most `k` different responses per item; they depend on the item and `seed` only, not on
        the other items."""
        ...


class Client(Protocol):
    def ask(self, conversations: list[list[dict]], parse: Callable[[str], T | None]) -> list[T | None]:
        """Returns what `parse` made of each reply, None if there was none that it could read."""
        ...


class ChatRewriter:
    """Has a chat model rewrite; a request without a usable reply is a rewrite less. UserError
    if none of a call's requests has one.

    Args:
        client: Asks it, for example an `ivgr.judge.chat_client.ChatClient`.
    """

    def __init__(self, client: Client) -> None:
        self.client = client

    def rewrite(self, items: Sequence[Candidate], k: int, seed: int) -> list[list[str]]:
        conversations = [
            [{"role": "user", "content": _request(item, manner)}]
            for item in items
            for manner in _manners(item, k, seed)
        ]
        replies = self.client.ask(conversations, read_reply)
        if replies and not any(replies):
            raise UserError(
                f"distill: not one of {len(replies)} requests to the chat model had a usable reply; "
                "check --base_url and --model, then call again to go on"
            )
        own = [replies[start : start + k] for start in range(0, len(replies), k)]
        return [list(dict.fromkeys(reply for reply in part if reply is not None)) for part in own]


MANNERS = (
    "Keep the order of the original.",
    "Begin with what the question is about, then what surrounds it.",
    "Go through the picture from left to right.",
    "Go through the picture from top to bottom.",
    "Be as brief as you can.",
    "Write one flowing paragraph that links each observation to the next.",
    "Say what is looked for before saying what is found.",
    "Use sentences of your own throughout.",
)

REQUEST = """\
A model was asked about a picture and reasoned with boxes. <box>[x1,y1,x2,y2]</box> gives the left, \
upper, right and lower edge of an object in a frame {width:g} wide and {height:g} high whose origin is \
the upper left corner.
Rewrite the reasoning in plain words for someone who sees the picture and no boxes: say where each boxed \
object is, in the picture or beside another object. Leave out no observation, add none that neither the \
reasoning nor its boxes hold, and write no coordinates. {manner}
Reply with the rewritten reasoning and the answer that it leads to, exactly in this form:
<think>REASONING</think><answer>ANSWER</answer>

Question: {question}
Reasoning: {think}"""


def _manners(item: Candidate, k: int, seed: int) -> list[str]:
    first = derive_seed(seed, "manner", item.sample.id, item.think)
    return [MANNERS[(first + way) % len(MANNERS)] for way in range(k)]


def _request(item: Candidate, manner: str) -> str:
    frame = item.frame
    return REQUEST.format(
        width=frame.width,
        height=frame.height,
        manner=manner,
        question=item.sample.question,
        think=item.think.strip(),
    )


def read_reply(text: str) -> str | None:
    """The response in a reply, None if there is none; what comes before it (a model's own
    thoughts, a code fence) is left out."""
    _before, tag, rest = text.rpartition("<think>")
    response = tag + rest.strip().removesuffix("```").rstrip()
    return response if format_reward(response) else None
