"""The tree-packed forward against an independent oracle: the stock forward of one
unpadded row, for random trees and every model family."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ivgr.core.query import rollouts_of
from ivgr.models.tree_attention import attend_mask, block_mask, tree_mask
from ivgr.packing.prefix_tree import pack_queries, split_tree, tree_length
from support.families import FAMILIES, make_tree, tiny_family
from support.trees import gradients, tree_logps

MODELS = {family: tiny_family(family) for family in FAMILIES}


def row_logps(model, queries):
    """Each response scored by the stock forward of its own row."""
    rows = []
    for query in queries:
        for group in query.groups:
            for rollout in group.rollouts:
                ids = torch.cat([query.prefix, group.instruction, rollout.tokens])[None]
                vision = {}
                if query.pixel_values is not None:
                    image = (ids == model.config.image_token_id).int()
                    vision = {
                        "pixel_values": query.pixel_values,
                        "image_grid_thw": query.image_grid_thw,
                        "mm_token_type_ids": image,
                    }
                model.model.rope_deltas = None
                logits = model(input_ids=ids, **vision).logits[0]
                count = len(rollout.tokens)
                logp = logits.log_softmax(-1)[len(ids[0]) - count - 1 : -1]
                rows.append(logp.gather(1, rollout.tokens[:, None])[:, 0])
    return torch.cat(rows)


image = st.tuples(st.integers(1, 3), st.integers(1, 3))
tree = st.integers(1, 2).flatmap(
    lambda streams: st.tuples(
        st.lists(image, max_size=2),
        st.just(streams),
        st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=streams, max_size=streams),
    )
)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=20)
@given(
    trees=st.lists(tree, min_size=1, max_size=3),
    seed=st.integers(0, 99),
    budget=st.sampled_from([1, 99, 9999]),
    layout=st.sampled_from([{"join": True}, {"join": False}, {"layout": "rows"}]),
)
def test_tree_equals_separate_rows_in_logps_and_gradients(family, trees, seed, budget, layout):
    model, generator = MODELS[family], torch.Generator().manual_seed(seed)
    queries = [make_tree(model, generator, *shape) for shape in trees]
    if not any(sum(map(sum, shape[2])) for shape in trees):
        return
    tree_values, row_values = tree_logps(model, queries, budget, **layout), row_logps(model, queries)
    torch.testing.assert_close(tree_values, row_values, atol=1e-5, rtol=0)
    tree_grads, row_grads = gradients(model, tree_values), gradients(model, row_values)
    assert tree_grads.keys() == row_grads.keys()
    floor = 1e-6 * torch.cat([g.flatten() for g in row_grads.values()]).norm()
    for name, grad in row_grads.items():
        assert (tree_grads[name] - grad).norm() <= 1e-5 * grad.norm() + floor, name


@pytest.mark.parametrize("join", [True, False])
def test_packs_respect_the_token_budget_and_the_order(join):
    model, generator = MODELS["qwen2_vl"], torch.Generator().manual_seed(0)
    queries = [make_tree(model, generator, [(1, 2)], 2, [[n, 3], [2, 1]]) for n in range(1, 7)]
    width = max(map(tree_length, queries))
    packs = pack_queries(model, queries, 3 * width, join=join)
    assert [query for pack in packs for query in pack.queries] == queries
    assert all(pack.ids.numel() <= 3 * width for pack in packs)
    pixels = [part for pack in packs for part in pack.pixels]
    assert all(part is query.pixel_values for part, query in zip(pixels, queries, strict=True))  # no copies
    assert all((len(pack.ids) == 1) == join for pack in packs)
    assert len(packs) < len(queries)


@given(shape=tree, budget=st.integers(0, 40), seed=st.integers(0, 9))
def test_a_tree_beyond_the_budget_is_split_into_as_few_as_keep_the_order(shape, budget, seed):
    query = make_tree(MODELS["qwen2_vl"], torch.Generator().manual_seed(seed), *shape)
    parts = split_tree(query, budget)
    assert [id(one) for one in rollouts_of(parts)] == [id(one) for one in rollouts_of([query])]
    for part in parts:
        assert part.prefix is query.prefix and part.pixel_values is query.pixel_values
        assert tree_length(part) <= budget or len(rollouts_of([part])) == 1
        for group in part.groups:
            whole = query.group(group.stream)
            assert group.instruction is whole.instruction
            assert {id(one) for one in group.rollouts} <= {id(one) for one in whole.rollouts}
    for first, second in pairwise(parts):  # the next rollout would not have found room
        group = second.groups[0]
        more = 0 if first.groups[-1].stream == group.stream else len(group.instruction)
        assert tree_length(first) + more + len(group.rollouts[0].tokens) > budget


def test_a_prompt_without_rollouts_is_never_split():
    query = make_tree(MODELS["qwen2_vl"], torch.Generator().manual_seed(0), [(2, 2)], 2, [[], []])
    assert split_tree(query, 0) == [query]


@pytest.mark.parametrize("join", [True, False])
def test_the_vision_tower_runs_once_an_image(join):
    model, generator = MODELS["qwen2_vl"], torch.Generator().manual_seed(0)
    queries = [make_tree(model, generator, [(2, 2)], 2, [[3, 4], [2, 1]]) for _ in range(3)]
    seen = []
    hook = model.model.visual.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    try:
        tree_logps(model, queries, 1 << 30, join=join)
        tree_logps(model, queries, 1 << 30, layout="rows")
    finally:
        hook.remove()
    assert seen == [3 * 16, 12 * 16]


def test_flex_attention_sees_what_the_dense_mask_sees():
    model, generator = MODELS["qwen2_vl"], torch.Generator().manual_seed(0)
    queries = [make_tree(model, generator, [(2, 2)], 2, [[3, 40], [2, 90]]) for _ in range(3)]
    layer = model.model.language_model.layers[0].self_attn
    for join in (True, False):
        (pack,) = pack_queries(model, queries, 1 << 30, join=join)
        shape = (len(pack.ids), 2, pack.ids.shape[1], 16)
        query, key, value = torch.randn(3, *shape, generator=generator)
        query = query.repeat(1, 2, 1, 1)
        with torch.no_grad():
            dense = attend_mask(layer, query, key, value, tree_mask(pack.reach, torch.float32), scaling=0.25)
            flex = attend_mask(layer, query, key, value, block_mask(pack.reach), scaling=0.25)
        torch.testing.assert_close(flex, dense, atol=1e-5, rtol=0)
