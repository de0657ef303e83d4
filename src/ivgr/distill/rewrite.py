"""Grounded reasoning said again without boxes, several ways.

In: `Candidate`s. Out: textual responses, `<think>…</think><answer>…</answer>`, which nobody
has checked yet.
"""

import random
from collections.abc import Callable
from typing import Protocol, TypeVar

from ivgr.data.demonstration import write_response
from ivgr.distill.collect import Candidate
from ivgr.errors import UserError
from ivgr.rewards.format import format_reward
from ivgr.seeding import derive_seed
from ivgr.world.claims import Claim, read_claims, say_attribute, say_place

T = TypeVar("T")


class Rewriter(Protocol):
    def rewrite(self, items: list[Candidate], k: int, seed: int) -> list[list[str]]:
        """For each item at most `k` different responses; which they are depends on the item
        and `seed` alone, not on the other items."""


class RuleRewriter:
    """Rewrites the tiny world's statements: a box becomes the place of its centre, in words.
    What is no statement of the world is left out; reasoning that states nothing has no rewrite."""

    def rewrite(self, items: list[Candidate], k: int, seed: int) -> list[list[str]]:
        return [[write_response(text, item.answer) for text in _wordings(item, k, seed)] for item in items]


def _wordings(item: Candidate, k: int, seed: int) -> list[str]:
    claims = sorted(read_claims(item.think, item.frame.width, item.frame.height))
    if not claims:
        return []
    rng = random.Random(derive_seed(seed, "rewrite", item.sample.id, item.think))
    drawn = dict.fromkeys(_word(claims, rng) for _ in range(8 * k))
    return list(drawn)[:k]


def _word(claims: list[Claim], rng: random.Random) -> str:
    """The claims as sentences, places before attributes, else in random order; two may be
    joined by "and", and a question may stand before the first place."""
    order = sorted(rng.sample(claims, len(claims)), key=lambda claim: claim[1] != "place")
    sentences = [_say(claim) for claim in order]
    if order[0][1] == "place" and rng.random() < 0.5:
        sentences[0] = f"Where is the {order[0][0]}? {sentences[0]}"
    text = sentences[0]
    for sentence in sentences[1:]:
        joined = rng.random() < 0.3
        text = f"{text[:-1]} and t{sentence[1:]}" if joined else f"{text} {sentence}"
    return text


def _say(claim: Claim) -> str:
    name, attribute, value = claim
    return say_place(name, value) if attribute == "place" else say_attribute(name, value)


class Client(Protocol):
    def ask(self, conversations: list[list[dict]], parse: Callable[[str], T | None]) -> list[T | None]:
        """What `parse` made of each reply, None where there was none that it could read."""


class ChatRewriter:
    """Has a chat model rewrite; a request without a usable reply is a rewrite less. UserError
    if none of a call's requests has one.

    Args:
        client: Asks it, for example an `ivgr.judge.client.ChatClient`.
    """

    def __init__(self, client: Client) -> None:
        self.client = client

    def rewrite(self, items: list[Candidate], k: int, seed: int) -> list[list[str]]:
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
    before, tag, rest = text.rpartition("<think>")
    response = tag + rest.strip().removesuffix("```").rstrip()
    return response if format_reward(response) else None
