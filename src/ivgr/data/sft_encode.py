"""Cold-start demonstrations: a sample's gold reasoning as if it had been rolled out."""

import re
from dataclasses import dataclass

import torch

from ivgr.core.errors import UserError
from ivgr.core.frame import RELATIVE, Frame
from ivgr.core.prompts import GROUNDED, TEXTUAL
from ivgr.core.query import Query, Rollout
from ivgr.core.sample import Sample
from ivgr.data.encode import QueryEncoder
from ivgr.models.forward import end_of_turn

_BOX = re.compile(r"<box>\[([0-9. ]+),([0-9. ]+),([0-9. ]+),([0-9. ]+)\]</box>")


@dataclass(frozen=True)
class Demonstration:
    """A sample and the stream whose reasoning is to be imitated."""

    sample: Sample
    stream: str


def encode_demonstration(demonstration: Demonstration, encoder: QueryEncoder) -> Query:
    """A query of one stream whose only rollout is the demonstrated response."""
    sample, stream = demonstration.sample, demonstration.stream
    query = encoder(sample, (stream,))
    reasoning = move_boxes(_reasoning(sample, stream), RELATIVE, query.frame)
    said = write_response(reasoning, sample.answer)
    opened, tokenizer = query.groups[0].opened, encoder.processor.tokenizer
    said = said.removeprefix("<think>") if opened else said
    ids = [*tokenizer(said).input_ids, end_of_turn(tokenizer)]
    encoder.check_embedded(ids, sample.id)
    unknown = torch.zeros(len(ids))
    query.groups[0].rollouts.append(Rollout(torch.tensor(ids), unknown, unknown, opened + said, False))
    return query


def move_boxes(text: str, source: Frame, target: Frame) -> str:
    """`text` with the boxes that it has in `source` in whole coordinates of `target`."""
    if source == target:
        return text
    x, y = target.width / source.width, target.height / source.height

    def rewrite(box: re.Match) -> str:
        scaled = [round(float(c) * scale) for c, scale in zip(box.groups(), (x, y, x, y), strict=True)]
        return f"<box>[{','.join(map(str, scaled))}]</box>"

    return _BOX.sub(rewrite, text)


def encode_demonstrations(demonstrations: list[Demonstration], encoder: QueryEncoder) -> list[Query]:
    return [encode_demonstration(demonstration, encoder) for demonstration in demonstrations]


def write_response(reasoning: str, answer: str) -> str:
    """The text of a well-formed response."""
    return f"<think>{reasoning}</think><answer>{answer}</answer>"


def _reasoning(sample: Sample, stream: str) -> str:
    name = GROUNDED if stream == GROUNDED else TEXTUAL
    if name not in sample.reasoning:
        raise UserError(f'{sample.where}: "reasoning" has no "{name}" text to imitate')
    return sample.reasoning[name]
