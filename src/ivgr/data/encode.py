"""A `Sample` becomes a `Query`: the model's own processor and chat template, images
processed once, the streams' prompts split at the end of what they share."""

from dataclasses import dataclass

import torch
from transformers import ProcessorMixin

from ivgr.data.prompts import Prompts, streams_of
from ivgr.data.sample import Sample
from ivgr.errors import UserError
from ivgr.families.frame import RELATIVE
from ivgr.families.registry import find_family
from ivgr.query import Group, Query


@dataclass
class QueryEncoder:
    """Encodes samples for one model.

    Args:
        processor: The model's HF processor.
        model_type: `config.model_type` of the model; decides the coordinate frame.
        prompts: Instructions of the two streams.
        max_prompt_tokens: Longest prompt allowed, in tokens, images included.
    """

    processor: ProcessorMixin
    model_type: str
    prompts: Prompts
    max_prompt_tokens: int = 8192

    def __call__(self, sample: Sample, streams: tuple[str, ...] | None = None) -> Query:
        """The query of `sample` in `streams` (default: those of its kind). UserError names
        the sample if an image is broken or a prompt is too long."""
        images = sample.open_images()
        vision = dict(self.processor.image_processor(images=images, return_tensors="pt")) if images else {}
        grid = vision.get("image_grid_thw")
        streams = streams or streams_of(sample.kind)
        prompts = [self._prompt_ids(sample, stream, grid) for stream in streams]
        shared = _shared_length(prompts)
        frame, boxes = self._boxes(sample, images, grid)
        return Query(
            sample=sample,
            prefix=torch.tensor(prompts[0][:shared]),
            groups=[Group(s, torch.tensor(ids[shared:])) for s, ids in zip(streams, prompts, strict=True)],
            boxes=boxes,
            frame=frame,
            pixel_values=vision.get("pixel_values"),
            image_grid_thw=grid,
        )

    def _prompt_ids(self, sample: Sample, stream: str, grid: torch.Tensor | None) -> list[int]:
        """Token ids of one prompt, each image placeholder repeated as often as the image
        has tokens (as the HF processor does, which would process the image anew)."""
        messages = self.prompts.messages(sample.question, len(sample.images), stream)
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        token = self.processor.image_token
        if sample.question.count(token):
            raise UserError(f"sample {sample.id}: the question holds the image token {token}; remove it")
        pieces = text.split(token)
        merge = self.processor.image_processor.merge_size**2
        counts = [] if grid is None else (grid.prod(-1) // merge).tolist()
        text = pieces[0] + "".join(token * n + piece for n, piece in zip(counts, pieces[1:], strict=True))
        ids = self.processor.tokenizer(text).input_ids
        if len(ids) > self.max_prompt_tokens:
            raise UserError(
                f"sample {sample.id}: its {stream} prompt has {len(ids)} tokens, more than "
                f"max_prompt_tokens {self.max_prompt_tokens}; lower max_pixels of model.policy or raise it"
            )
        return ids

    def _boxes(self, sample: Sample, images: list, grid: torch.Tensor | None):
        """The frame of the first image and the gold boxes in it."""
        if grid is None:
            return RELATIVE, ()
        patch = self.processor.image_processor.patch_size
        resized = int(grid[0, 2]) * patch, int(grid[0, 1]) * patch
        frame = find_family(self.model_type).frame(resized)
        return frame, tuple(frame.from_pixels(box, images[0].size) for box in sample.boxes)


def _shared_length(prompts: list[list[int]]) -> int:
    """Tokens that all prompts begin with; at least one is left to each as its instruction."""
    length = 0
    limit = min(map(len, prompts)) - 1
    while length < limit and all(ids[length] == prompts[0][length] for ids in prompts):
        length += 1
    return length
