"""What a policy said, token by token: where its reasoning stands and where it names an object.

In: rolled-out queries. Out: `AnnotatedResponse`s, queries of one stream and one response, whose tokens are
those of the response's text, so that a place in the text is a place among the tokens.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ivgr.core.query import Query, Rollout
from ivgr.core.response import read_think
from ivgr.core.sample import Sample
from ivgr.data.encode import QueryEncoder
from ivgr.rollout.transformers_engine import RolloutEngine

# Where the reasoning is looked into: at an object's noun, or just before it says where that is.
Point = Literal["noun", "place"]
_PLACE = re.compile(
    r"\d|\b(?:upper|lower|top|bottom|left|right|middle|cent(?:er|re)|above|below|under|over|behind|beside"
    r"|front|corner|edge|side|foreground|background)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Mention:
    """The first time the reasoning names object `box` (index of its gold box), as tokens counted
    within the response: noun is the last one of its label; place the last one before the same
    sentence says where it is, by a number (of a box) or a word of place, None if it does not."""

    box: int
    noun: int
    place: int | None


@dataclass(frozen=True)
class AnnotatedResponse:
    """A query of one group with one rollout; think: the reasoning's tokens, counted within the
    response; mentions: the gold objects it names."""

    query: Query
    think: tuple[int, ...]
    mentions: tuple[Mention, ...]

    @property
    def start(self) -> int:
        """The response's first token, counted within prompt and response."""
        return len(self.query.prefix) + len(self.query.groups[0].instruction)

    def points(self, point: Point) -> list[tuple[int, int]]:
        """Gold box and token of each mention that has such a point."""
        found = [(mention.box, getattr(mention, point)) for mention in self.mentions]
        return [(box, token) for box, token in found if token is not None]


def respond(
    policy: PreTrainedModel, encoder: QueryEncoder, engine: RolloutEngine, samples: list[Sample], stream: str
) -> list[AnnotatedResponse]:
    """The policy's greedy responses in one stream. RejectedSample if a sample cannot be encoded."""
    queries = [encoder(sample, (stream,)) for sample in samples]
    engine.answer(policy, encoder.processor.tokenizer, queries)
    return [read_response(query, encoder.processor.tokenizer) for query in queries]


def read_response(query: Query, tokenizer: PreTrainedTokenizerBase) -> AnnotatedResponse:
    """`query` must have one group, and that one rollout."""
    ((rollout,),) = (group.rollouts for group in query.groups)
    ids, spans = spell(rollout.text, tokenizer, len(query.groups[0].opened))
    spoken = with_responses(query, [(rollout.text, ids)])
    begin = rollout.text.find("<think>") + len("<think>")
    think = read_think(rollout.text)
    found = [_mention(box, label, think, begin, spans) for box, label in enumerate(query.sample.labels)]
    mentions = tuple(mention for mention in found if mention is not None)
    return AnnotatedResponse(
        spoken, tokens_within(spans, begin, begin + len(think)) if think else (), mentions
    )


def _mention(box: int, label: str, think: str, begin: int, spans: list[tuple[int, int]]) -> Mention | None:
    """Finds the mention of `label` in `think`, whose first character is number `begin` of the response."""
    named = re.search(rf"\b{re.escape(label)}\b", think, re.IGNORECASE)
    if named is None:
        return None
    noun = tokens_within(spans, begin + named.start(), begin + named.end())[-1]
    said = _PLACE.search(re.split(r"[.;!?\n]", think[named.end() :])[0])
    if said is None:
        return Mention(box, noun, None)
    first = tokens_within(spans, begin + named.end() + said.start(), begin + named.end() + said.end())[0]
    return Mention(box, noun, max(first - 1, noun))


def spell(
    text: str, tokenizer: PreTrainedTokenizerBase, begin: int = 0
) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """The tokens (T,) of `text` from character `begin` on, and the characters from … to of each."""
    spelt = tokenizer(text[begin:], add_special_tokens=False, return_offsets_mapping=True)
    spans = [(first + begin, last + begin) for first, last in spelt["offset_mapping"]]
    return torch.tensor(spelt["input_ids"], dtype=torch.long), spans


def with_responses(query: Query, responses: list[tuple[str, torch.Tensor]]) -> Query:
    """`query` with these responses, text and tokens, in its only group."""
    (group,) = query.groups
    rollouts = [Rollout(ids, torch.empty(0), torch.empty(0), text, False) for text, ids in responses]
    return replace(query, groups=[replace(group, rollouts=rollouts)])


def tokens_within(spans: list[tuple[int, int]], begin: int, end: int) -> tuple[int, ...]:
    """The tokens that have a character in common with begin … end."""
    return tuple(n for n, (first, last) in enumerate(spans) if first < end and last > begin)
