"""The tree-packed forward against an independent oracle: the stock forward of one
unpadded row, for random trees."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ivgr.policy.scratch import TinyScratch
from ivgr.query import Group, Query, Rollout
from ivgr.tree import pack_queries


@pytest.fixture(scope="module")
def model():
    return TinyScratch(width=64, layers=2, vision_layers=1).load()[0].eval()


def make_query(model, generator, images, streams, lengths):
    """A random tree; lengths[s][n] response tokens."""

    def words(count):
        return torch.randint(0, 1400, (count,), generator=generator)

    config = model.config
    parts, grids, pixels = [words(3)], [], []
    for height, width in images:
        start, end = config.vision_start_token_id, config.vision_end_token_id
        tokens = [start, *[config.image_token_id] * (height * width), end]
        parts.append(torch.tensor(tokens))
        grids.append([1, height * 2, width * 2])
        pixels.append(torch.randn(height * width * 4, 1176, generator=generator))
    parts.append(words(4))
    groups = []
    for stream in range(streams):
        group = Group(f"stream{stream}", words(2 + 3 * stream))
        for count in lengths[stream]:
            tokens = words(count)
            group.rollouts.append(Rollout(tokens, torch.zeros(count), torch.zeros(count), "", False))
        groups.append(group)
    return Query(
        sample=None,
        prefix=torch.cat(parts),
        groups=groups,
        pixel_values=torch.cat(pixels) if pixels else None,
        image_grid_thw=torch.tensor(grids) if grids else None,
    )


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


def tree_logps(model, queries, budget):
    parts = []
    for pack in pack_queries(model, queries, budget):
        logp = model.lm_head(pack.response_hidden(model)).log_softmax(-1)
        parts.append(logp.gather(1, pack.targets[:, None])[:, 0])
    return torch.cat(parts)


def gradients(model, logps):
    model.zero_grad()
    weights = torch.linspace(-1, 1, len(logps))
    (logps * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


image = st.tuples(st.integers(1, 3), st.integers(1, 3))
tree = st.integers(1, 2).flatmap(
    lambda streams: st.tuples(
        st.lists(image, max_size=2),
        st.just(streams),
        st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=streams, max_size=streams),
    )
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    trees=st.lists(tree, min_size=1, max_size=3),
    seed=st.integers(0, 99),
    budget=st.sampled_from([1, 99, 9999]),
)
def test_tree_equals_separate_rows_in_logps_and_gradients(model, trees, seed, budget):
    generator = torch.Generator().manual_seed(seed)
    queries = [make_query(model, generator, *shape) for shape in trees]
    if not any(sum(map(sum, shape[2])) for shape in trees):
        return
    tree_values, row_values = tree_logps(model, queries, budget), row_logps(model, queries)
    torch.testing.assert_close(tree_values, row_values, atol=1e-5, rtol=0)
    tree_grads, row_grads = gradients(model, tree_values), gradients(model, row_values)
    floor = 1e-6 * torch.cat([g.flatten() for g in row_grads.values()]).norm()
    for name, grad in row_grads.items():
        assert (tree_grads[name] - grad).norm() <= 1e-5 * max(grad.norm(), floor) + 10 * floor, name


def test_packs_respect_the_token_budget_and_the_order(model):
    generator = torch.Generator().manual_seed(0)
    queries = [make_query(model, generator, [(1, 2)], 2, [[n, 3], [2, 1]]) for n in range(1, 7)]
    width = max(pack.ids.shape[1] for pack in pack_queries(model, queries, 1))
    packs = pack_queries(model, queries, 3 * width)
    assert [query for pack in packs for query in pack.queries] == queries
    assert all(pack.ids.numel() <= 3 * width for pack in packs)
    assert len(packs) < len(queries)
