"""Rewrites the tiny world's statements by rule, without a language model."""

import random
from collections.abc import Sequence
from typing import Protocol

from ivgr.core.frame import Frame
from ivgr.core.sample import Sample
from ivgr.core.seeding import derive_seed
from ivgr.data.sft_encode import write_response
from ivgr.toy.statements import Claim, read_claims, say_attribute, say_place


class GroundedResponse(Protocol):
    """The input of a rewrite: reasoning and answer of a grounded rollout, boxes in `frame`."""

    @property
    def sample(self) -> Sample: ...

    @property
    def think(self) -> str: ...

    @property
    def answer(self) -> str: ...

    @property
    def frame(self) -> Frame: ...


class RuleRewriter:
    """Rewrites the tiny world's statements: a box becomes the place of its centre, in words.
    What is no statement of the world is left out; reasoning that states nothing has no rewrite."""

    def rewrite(self, items: Sequence[GroundedResponse], k: int, seed: int) -> list[list[str]]:
        return [[write_response(text, item.answer) for text in _wordings(item, k, seed)] for item in items]


def _wordings(item: GroundedResponse, k: int, seed: int) -> list[str]:
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
