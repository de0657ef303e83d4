"""Queries as long as a recipe allows: images of the most pixels, a prompt of max_prompt_tokens.

In: an encoder and the limits. Out: queries that share their tensors; nothing fills their pixels.
"""

from dataclasses import replace

import torch

from ivgr.core.query import Group, Query, Rollout
from ivgr.core.sample import Sample
from ivgr.data.encode import QueryEncoder
from ivgr.data.stream import BatchComposition

TEXT = 256  # tokens of the question and of all else but images and instructions, at least
INSTRUCTION = 40
WORD = 300  # any token that is an ordinary word


def make_queries(
    encoder: QueryEncoder, mix: BatchComposition, streams: tuple[str, ...], ranks: int
) -> list[Query]:
    """An iteration's queries on the first of `ranks`: paired ones first."""
    whole = make_query(encoder, "single")
    kinds = [streams] * mix.paired + [("single",)] * mix.single
    return [
        replace(
            whole,
            groups=[Group(stream, torch.full((INSTRUCTION,), WORD)) for stream in kind],
            sample=replace(whole.sample, kind="single" if kind == ("single",) else "paired"),
            sample_index=index * ranks,
        )
        for index, kind in enumerate(kinds)
    ]


def demonstrate(query: Query, tokens: int) -> Query:
    """`query` with one response of so many tokens, as a cold start is shown."""
    unknown = torch.zeros(tokens)
    rollout = Rollout(torch.full((tokens,), WORD), unknown, unknown, "", False)
    return replace(query, groups=[replace(group, rollouts=[rollout]) for group in query.groups])


def make_query(encoder: QueryEncoder, kind: str) -> Query:
    """The longest query: as many images of the most pixels as the prompt holds, one more for what is left of
    it, and text."""
    images = encoder.processor.image_processor
    side = images.patch_size * images.merge_size
    largest = max(images.size["longest_edge"] // side**2, 1)
    smallest = -(-images.size["shortest_edge"] // side**2)
    left = max(encoder.max_prompt_tokens - INSTRUCTION - TEXT, smallest + 2)
    counts = []
    while (room := min(largest, left - 2)) >= smallest:
        grid = shape_image(room)
        counts.append(grid)
        left -= grid[0] * grid[1] + 2
    prefix, merge, own = [], images.merge_size, encoder.processor
    for rows, columns in counts:
        prefix += _image_tokens(own, rows * columns)
    rest = max(encoder.max_prompt_tokens - INSTRUCTION - len(prefix), 1)
    patches = sum(rows * columns for rows, columns in counts) * merge**2
    features = 3 * images.temporal_patch_size * images.patch_size**2
    return Query(
        sample=Sample("rehearsed", "?", "?", kind=kind),
        prefix=torch.tensor(prefix + [WORD] * rest),
        groups=[],
        pixel_values=torch.empty(patches, features, dtype=encoder.pixel_dtype),
        image_grid_thw=torch.tensor([[1, rows * merge, columns * merge] for rows, columns in counts]),
    )


def shape_image(tokens: int) -> tuple[int, int]:
    """Rows and columns of an image of at most so many tokens, as square as it can be."""
    rows = max(int(tokens**0.5), 1)
    return rows, tokens // rows


def _image_tokens(processor: object, count: int) -> list[int]:
    tokenizer = processor.tokenizer
    start, end = map(tokenizer.convert_tokens_to_ids, ("<|vision_start|>", "<|vision_end|>"))
    return [start, *[processor.image_token_id] * count, end]
