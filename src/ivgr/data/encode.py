"""The encoder from `Sample` to `Query`.

It uses the model's own processor and chat template, processes images once, and splits the streams' prompts
where their shared prefix ends.
"""

import math
import re
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from os.path import commonprefix

import torch
from PIL import Image
from transformers import PreTrainedConfig, ProcessorMixin

from ivgr.core.boxes import clip_box
from ivgr.core.frame import RELATIVE, Frame
from ivgr.core.prompts import PAIRED, Prompts, streams_of
from ivgr.core.query import Group, Query
from ivgr.core.rejection import RejectedSample, Rejection
from ivgr.core.sample import Sample
from ivgr.core.settings import PositiveInt, checked
from ivgr.data.answer_options import with_options
from ivgr.data.load_balancing import RankAssignment
from ivgr.data.shards import ShardedSample
from ivgr.models.processor import find_unembedded
from ivgr.models.registry import find_family

FILLER = Sample("filler", "", "")
_OPENED = re.compile(r"<think>\s*\Z")


@checked("model.encoding.")
@dataclass(frozen=True, kw_only=True)
class EncodingConfig:
    """Settings of the encoder from samples to prompts."""

    prompts: Prompts = Prompts()
    """Instructions of the streams."""

    max_prompt_tokens: PositiveInt = 8192
    """Longest prompt, images included."""


@dataclass
class QueryEncoder:
    """Encodes samples for one model.

    Args:
        processor: The model's HF processor.
        model_type: `config.model_type` of the model; decides the coordinate frame.
        prompts: Instructions of the two streams.
        max_prompt_tokens: Longest prompt allowed, in tokens, images included.
        embedded: How many tokens the model has an embedding for; others may not occur.
        pixel_dtype: Of pixel_values. The vision tower rounds them to the dtype that it computes in before
            anything else, so that in this dtype they give the same bits and take less room.
    """

    processor: ProcessorMixin
    model_type: str
    prompts: Prompts
    max_prompt_tokens: int = 8192
    embedded: int = sys.maxsize
    pixel_dtype: torch.dtype = torch.float32

    @classmethod
    def of(
        cls,
        config: PreTrainedConfig,
        processor: ProcessorMixin,
        prompts: Prompts,
        limit: int = 8192,
        pixel_dtype: torch.dtype = torch.float32,
    ) -> "QueryEncoder":
        """Returns the encoder for the model of `config`."""
        embedded = config.get_text_config().vocab_size
        return cls(processor, config.model_type, prompts, limit, embedded, pixel_dtype)

    def __call__(self, sample: Sample, streams: tuple[str, ...] | None = None) -> Query:
        """Encodes `sample` for `streams` (default: those of its kind). RejectedSample names the sample if an
        image is broken, a box lies outside the first image, or a prompt is too long."""
        images = sample.open_images()
        pixels = [clip_box(box, images[0].size, sample.where) for box in sample.boxes]
        vision = self._process(images, sample.where) if images else {}
        grid = vision.get("image_grid_thw")
        grids = [] if grid is None else grid.tolist()
        streams = streams or streams_of(sample.kind)
        prompts = self._prompt_ids(sample, streams, grids)
        shared = _shared_length(prompts)
        frame = self._frame(grids)
        return Query(
            sample=sample,
            prefix=torch.tensor(prompts[0][:shared]),
            groups=[
                Group(stream, torch.tensor(ids[shared:]), opened=self._opened)
                for stream, ids in zip(streams, prompts, strict=True)
            ],
            boxes=tuple(frame.from_pixels(box, images[0].size) for box in pixels),
            frame=frame,
            pixel_values=vision.get("pixel_values"),
            image_grid_thw=grid,
        )

    def filler(self, picture: bool) -> Query:
        """Returns a query without groups: one token, or the tokens of the smallest image."""
        if not picture:
            return Query(FILLER, torch.tensor([self.processor.tokenizer.eos_token_id]), [])
        vision = self._process([Image.new("RGB", (64, 64))], FILLER.where)
        pixels, grid = vision["pixel_values"], vision["image_grid_thw"]
        (count,) = self._image_tokens(grid.tolist())
        prefix = torch.full((count,), self.processor.image_token_id)
        return Query(FILLER, prefix, [], pixel_values=pixels, image_grid_thw=grid)

    def _process(self, images: list[Image.Image], where: str) -> dict[str, torch.Tensor]:
        """Returns pixel_values and image_grid_thw; RejectedSample if the processor refuses an image, such as
        one that is too narrow."""
        try:
            # They are RGB already; converting would copy each once more.
            process = self.processor.image_processor
            found = dict(process(images=images, do_convert_rgb=False, return_tensors="pt"))
        except ValueError as error:
            raise RejectedSample(
                f"{where}: the processor refuses its images ({error}); crop or remove them",
                "image: refused by the processor",
            ) from error
        return found | {"pixel_values": found["pixel_values"].to(self.pixel_dtype)}

    def _prompt_ids(
        self, sample: Sample, streams: tuple[str, ...], grids: list[list[int]]
    ) -> list[list[int]]:
        """Returns the token ids of each stream's prompt."""
        question = with_options(sample.question, sample.options)
        reserved = next((token for token in self._reserved if token in question), None)
        if reserved is not None:
            raise RejectedSample(
                f"{sample.where}: the question holds the model's own token {reserved}; remove it",
                "question: holds a reserved token",
            )
        chats = [self.prompts.messages(question, len(sample.images), stream) for stream in streams]
        texts = self.processor.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        prompts = [self._expand(text, self._image_tokens(grids)) for text in texts]
        for ids, stream in zip(prompts, streams, strict=True):
            self.check_embedded(ids, sample.id)
            if len(ids) > self.max_prompt_tokens:
                raise RejectedSample(
                    f"{sample.where}: its {stream} prompt has {len(ids)} tokens, more than "
                    f"max_prompt_tokens {self.max_prompt_tokens}; lower model.policy.max_pixels or raise it",
                    "prompt: too long",
                )
        return prompts

    def check_embedded(self, ids: list[int], id: str) -> None:
        """Raises RejectedSample if `ids` hold a token that the tokenizer knows and the model does not."""
        token = find_unembedded(ids, self.processor.tokenizer, self.embedded)
        if token is not None:
            raise RejectedSample(
                f"sample {id}: it holds {token!r}, a token of the tokenizer that the model has no embedding "
                "for; remove it, or resize the model's embedding and train it",
                "text: a token without an embedding",
            )

    def _image_tokens(self, grids: list[list[int]]) -> list[int]:
        """Returns the number of tokens of each image."""
        return [math.prod(grid) // self.processor.image_processor.merge_size**2 for grid in grids]

    def _expand(self, text: str, counts: list[int]) -> list[int]:
        """Returns the token ids of `text`, with each image placeholder repeated once per image token. (The
        HF processor does the same, but would process the image again.)"""
        image, left = self.processor.image_token_id, iter(counts)
        ids: list[int] = []
        for token in self.processor.tokenizer.backend_tokenizer.encode(text).ids:
            ids += [token] * (next(left) if token == image else 1)
        return ids

    @cached_property
    def _opened(self) -> str:
        """The start of the response that the chat template writes itself: a think block that it leaves
        open."""
        chat = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
        without, whole = (
            self.processor.apply_chat_template([chat], tokenize=False, add_generation_prompt=flag)[0]
            for flag in (False, True)
        )
        opened = _OPENED.search(whole, len(commonprefix([without, whole])))  # noqa: RUF071  by character
        return opened[0] if opened else ""

    @cached_property
    def _reserved(self) -> tuple[str, ...]:
        """The texts that would stand for an image or end the turn."""
        own = self.processor
        return (own.image_token, own.video_token, *own.tokenizer.all_special_tokens)

    def _frame(self, grids: list[list[int]]) -> Frame:
        """Returns the frame of the first image's boxes."""
        if not grids:
            return RELATIVE
        patch = self.processor.image_processor.patch_size
        _, height, width = grids[0]
        return find_family(self.model_type).frame((width * patch, height * patch))


@dataclass
class Batch:
    """This rank's part of one iteration's draw: `seen` samples, of which the rejected ones are not among
    the queries."""

    queries: list[Query]
    rejected: list[Rejection]
    seen: int


def encode_batch(
    drawn: list[ShardedSample | Rejection],
    encoder: QueryEncoder,
    streams: tuple[str, ...] = PAIRED,
    spread: RankAssignment = RankAssignment(),
) -> Batch:
    """Encodes this rank's part of `drawn`, paired samples for `streams`; what cannot be encoded is
    rejected."""
    mine = spread.take(drawn, encoder.processor)
    batch = Batch([], [], len(mine))
    for sample_index, item in mine:
        if isinstance(item, Rejection):
            batch.rejected.append(item)
            continue
        try:
            query = encoder(item.sample, streams_of(item.sample.kind, streams))
            batch.queries.append(replace(query, sample_index=sample_index, source=item.source))
        except RejectedSample as error:
            batch.rejected.append(Rejection.of(error, item.shard, item.key, item.sample.id))
    return batch


def _shared_length(prompts: list[list[int]]) -> int:
    """Returns how many tokens all prompts share at their start; each keeps at least one as its
    instruction."""
    limit = min(map(len, prompts)) - 1
    first, *others = (ids[:limit] for ids in prompts)
    return min((_common(first, ids) for ids in others), default=limit)


def _common(one: list[int], other: list[int]) -> int:
    """Returns how many tokens two equally long lists share at their start."""
    low, high = 0, len(one)
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
