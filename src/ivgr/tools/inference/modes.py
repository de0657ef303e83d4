"""The three ways to ask a policy: text, grounded, tool. Samples in, a `Reply` each out.

text      the textual prompt: reasoning in plain words, then the answer
grounded  the grounded prompt: the same, with a box for every object it speaks of
tool      a grounded pass; its boxes cut out of the first image, and the smallest rectangle around
          them all; then the textual prompt on original images + crops + that rectangle
"""

import io
import math
from dataclasses import dataclass, field, replace
from typing import Protocol

from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ivgr.core.boxes import Box, parse_boxes
from ivgr.core.prompts import GROUNDED, TEXTUAL
from ivgr.core.query import Query
from ivgr.core.rejection import RejectedSample
from ivgr.core.sample import Sample
from ivgr.data.encode import QueryEncoder
from ivgr.tools.inference.crops import Cropping, Rectangle
from ivgr.tools.inference.mode_names import FIRST, Mode
from ivgr.tools.inference.parse_reply import NOTES, WHOLE, read_parts


class Answerer(Protocol):
    """The part of a rollout engine that is needed here."""

    def answer(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: list[Query]
    ) -> None:
        """Appends one rollout to each group."""


@dataclass
class Reply:
    """What a policy said.

    text is the whole response, think and answer its parts, answer_from where the answer was found
    (a key of reading.NOTES); boxes are those it wrote, in pixels of the first original image (in
    tool mode those of the first pass); crops are the parts of that image that tool mode showed
    again, in those pixels, the last around all boxes; tokens were written, in both passes;
    first_pass is the response of tool mode's grounded pass; notes say what was not as it should be:
    a tool reply without crops was given from the original alone.
    """

    text: str
    think: str
    answer: str
    answer_from: str = WHOLE
    boxes: list[Box] = field(default_factory=list)
    crops: list[Rectangle] = field(default_factory=list)
    tokens: int = 0
    first_pass: str = ""
    notes: list[str] = field(default_factory=list)


def respond(
    model: PreTrainedModel,
    encoder: QueryEncoder,
    engine: Answerer,
    samples: list[Sample],
    mode: Mode,
    cropping: Cropping = Cropping(),
) -> list[Reply]:
    """One reply a sample, in order. RejectedSample if one cannot be encoded; a second look that
    cannot is left out, and its reply says so."""
    first = [encoder(sample, (FIRST[mode],)) for sample in samples]
    engine.answer(model, encoder.processor.tokenizer, first)
    replies = [_read(query) for query in first]
    if mode == "tool":
        second = [_look_again(*pair, encoder, cropping) for pair in zip(first, replies, strict=True)]
        engine.answer(model, encoder.processor.tokenizer, second)
        replies = [_join(*pair) for pair in zip(replies, second, strict=True)]
    return replies


def _read(query: Query) -> Reply:
    """The reply of the query's only rollout."""
    ((rollout,),) = (group.rollouts for group in query.groups)
    parts = read_parts(rollout.text)
    notes = list(NOTES[parts.source])
    if rollout.truncated:
        notes.insert(0, f"cut off after {len(rollout.tokens)} tokens")
    boxes, written = _find_boxes(query, rollout.text), rollout.text.count("<box>")
    if not written and query.group(GROUNDED):
        notes.append("no box was written")
    if len(boxes) < written:
        notes.append(f"{written - len(boxes)} of {written} boxes are malformed and left out")
    return Reply(
        rollout.text, parts.think, parts.answer, parts.source, boxes, tokens=len(rollout.tokens), notes=notes
    )


def _find_boxes(query: Query, text: str) -> list[Box]:
    """The valid boxes of `text` in pixels of the first image; none where there is no image."""
    written = parse_boxes(text)
    if not written or not query.sample.images:
        return []
    size = query.sample.open_images()[0].size
    boxes = [query.frame.to_pixels(box, size) for box in written]
    return [box for box in boxes if all(map(math.isfinite, box))]


def _look_again(query: Query, reply: Reply, encoder: QueryEncoder, cropping: Cropping) -> Query:
    """The textual query that also sees what `reply`'s boxes hold; `reply` then knows the crops, or
    says why there are none."""
    reply.notes = [f"grounded pass: {note}" for note in reply.notes]
    size = query.sample.open_images()[0].size if query.sample.images else (0, 0)
    crops = cropping.look_again(reply.boxes, size)
    if crops:
        try:
            again = encoder(add_crops(query.sample, crops), (TEXTUAL,))
            reply.crops = crops
            return again
        except RejectedSample as error:
            reply.notes.append(f"answered in text mode, without the crops: {error}")
    else:
        reply.notes.append("no box in the image to look at: answered in text mode")
    return encoder(query.sample, (TEXTUAL,))


def add_crops(sample: Sample, rectangles: list[Rectangle]) -> Sample:
    """`sample` with these parts of its first image behind its images."""
    image = sample.open_images()[0]
    crops = tuple(encode_png(image.crop(rectangle)) for rectangle in rectangles)
    return replace(sample, images=sample.images + crops)


def _join(first: Reply, query: Query) -> Reply:
    """The second pass's reply, with what the first one found."""
    second = _read(query)
    return replace(
        second,
        boxes=first.boxes,
        crops=first.crops,
        tokens=first.tokens + second.tokens,
        first_pass=first.text,
        notes=first.notes + second.notes,
    )


def encode_png(image: Image.Image) -> bytes:
    """Without loss: what is looked at twice is the same twice."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
