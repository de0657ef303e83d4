"""Queries at a recipe's limits."""

import pytest

from ivgr.core.prompts import PAIRED, Prompts
from ivgr.data.encode import QueryEncoder
from ivgr.data.stream import BatchComposition
from ivgr.models.registry import FAMILIES
from ivgr.tools.rehearse.longest_queries import demonstrate, make_queries
from ivgr.toy.tokenizer import CHAT_TEMPLATE, build_tokenizer


def make_encoder(family: str, limit: int, pixels: int) -> QueryEncoder:
    processor = FAMILIES[family].build_processor(build_tokenizer(), CHAT_TEMPLATE, (3136, pixels))
    return QueryEncoder(processor, family, Prompts(), limit)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("limit", "pixels"), [(8192, 3211264), (1024, 200704), (300, 3211264)])
def test_prompts_are_as_long_as_allowed_and_images_as_large(family, limit, pixels):
    encoder = make_encoder(family, limit, pixels)
    query = make_queries(encoder, BatchComposition(0, 1), PAIRED, 1)[0]
    assert len(query.prefix) + len(query.groups[0].instruction) == limit
    images = encoder.processor.image_processor
    tokens = query.image_grid_thw.prod(-1) // images.merge_size**2
    assert int(tokens.sum()) == int((query.prefix == encoder.processor.image_token_id).sum())
    assert len(query.pixel_values) == int(query.image_grid_thw.prod(-1).sum())
    largest = pixels // (images.patch_size * images.merge_size) ** 2
    assert int(tokens.max()) <= largest
    if limit > 2 * largest:
        assert int(tokens.max()) > 0.95 * largest


def test_paired_and_single_queries_and_demonstrations():
    encoder = make_encoder("qwen2_vl", 512, 50176)
    queries = make_queries(encoder, BatchComposition(2, 1), PAIRED, 8)
    assert [len(query.groups) for query in queries] == [2, 2, 1]
    assert [query.sample_index for query in queries] == [0, 8, 16]
    shown = demonstrate(queries[2], 33)
    assert [len(group.rollouts[0].tokens) for group in shown.groups] == [33]
    assert not queries[2].groups[0].rollouts
