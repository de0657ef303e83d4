"""Rollouts with shared prefixes, for every model family: against stock `generate`, against the
scoring forward, and what a CUDA graph needs of a step."""

import pytest
import torch

from ivgr.core.query import rollouts_of
from ivgr.packing.prefix_tree import pack_queries
from ivgr.rollout.batch_rows import BatchRows, Prompt
from ivgr.rollout.branch_kv import GROWTH
from ivgr.rollout.branches import Branches
from ivgr.rollout.responses import Responses
from ivgr.rollout.room import cache_size
from ivgr.rollout.sampling import Sampling, SamplingConfig
from ivgr.rollout.transformers_engine import TransformersEngine
from support.families import FAMILIES, Words, make_tree, tiny_family

LIMIT = GROWTH + 6  # past the first growth of the suffixes
SHAPES = [([(2, 2)], 2), ([(1, 3), (2, 1)], 2), ([], 1), ([(3, 3)], 1)]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    model = tiny_family(request.param)
    model.generation_config.eos_token_id = [7, 11]
    model.generation_config.pad_token_id = 0
    return model


def trees(model):
    generator = torch.Generator().manual_seed(3)
    return [make_tree(model, generator, images, streams, [[]] * streams) for images, streams in SHAPES]


def stock_greedy(model, query, group):
    ids = torch.cat([query.prefix, group.instruction])[None]
    vision = {}
    if query.pixel_values is not None:
        vision = {"pixel_values": query.pixel_values, "image_grid_thw": query.image_grid_thw}
    kinds = (ids == model.config.image_token_id).int()
    model.model.rope_deltas = None
    answer = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=kinds,
        do_sample=False,
        max_new_tokens=LIMIT,
        suppress_tokens=[201, 202, 203, 204],
        **vision,
    )
    return answer[0, ids.shape[1] :].tolist()


def test_greedy_tokens_equal_stock_generate(model):
    queries = trees(model)
    TransformersEngine(SamplingConfig(max_new_tokens=LIMIT)).answer(model, Words(), queries)
    for query in queries:
        for group in query.groups:
            assert group.rollouts[0].tokens.tolist() == stock_greedy(model, query, group)


def test_sampled_logps_equal_the_scoring_forward(model):
    queries = trees(model)
    TransformersEngine(SamplingConfig(group_size=4, max_new_tokens=LIMIT)).roll_out(
        model, Words(), queries, seed=0
    )
    lengths = {len(rollout.tokens) for rollout in rollouts_of(queries)}
    assert len(lengths) > 3  # branches left the batch at different steps
    (pack,) = pack_queries(model, queries, 1 << 40)
    with torch.no_grad():
        log_p = model.lm_head(pack.response_hidden(model)).log_softmax(-1)
    logp = log_p.gather(1, pack.targets[:, None])[:, 0]
    torch.testing.assert_close(logp, pack.rollout_logp, atol=1e-4, rtol=0)


def batch_of(model, queries, copies):
    """Branches of all prompts, prefilled, each in a row of its own."""
    numbers = iter(range(1 << 20))
    prompts = [
        Prompt(query, [(group, [next(numbers) for _ in range(copies)]) for group in query.groups])
        for query in queries
    ]
    limits = [LIMIT] * next(numbers)
    responses = Responses(limits, Sampling(0.0, 1.0, (201, 202, 203, 204)), [7, 11], None, model.device)
    size = cache_size(model, prompts, LIMIT, queries=len(prompts), most=None)
    rows = BatchRows(prompts, size.branches, size.prefixes, refill=True)
    branches = Branches(model, responses, rows, size, interval=1, graphs=False)
    branches._prefill(rows.seat())
    branches._reserve()
    return branches


def test_a_prefix_is_kept_once_per_query_and_the_tower_runs_once_per_image(model):
    queries, seen = trees(model), []
    hook = model.model.visual.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    with hook, torch.no_grad():
        branches = batch_of(model, queries, 5)
    assert seen == [sum(len(q.pixel_values) for q in queries if q.pixel_values is not None)]
    assert all(len(keys) == len(queries) for keys, _ in branches.cache.prefix_kv)
    for row in set(branches.rows.taken) - {0, 1, 7, 29}:  # of the first query and the last
        branches.rows.release(row)
        del branches.seated_at[row]
    branches._close_up()
    assert all(len(keys) == 2 for keys, _ in branches.cache.prefix_kv)


def test_a_step_can_be_replayed(model):
    """Between growths a step reads and writes the same tensors, and twice is as good as once."""
    places = []
    with torch.no_grad():
        branches = batch_of(model, trees(model), 2)
        for _ in range(4):
            branches._step()
            cache = branches.cache
            before = [part.clone() for pair in cache.branches.kv for part in pair]
            logits = branches._logits()  # of the tokens after
            after = [part for pair in cache.branches.kv for part in pair]
            torch.testing.assert_close(branches._logits(), logits, atol=0, rtol=0)
            for part, old in zip(after, before, strict=True):
                part.copy_(old)
            tensors = [
                branches.token,
                branches.position,
                cache.branches.position,
                cache.branches.bias,
                cache.prefix_bias,
            ]
            tensors += [part for pair in cache.branches.kv + cache.prefix_kv for part in pair]
            places.append([tensor.data_ptr() for tensor in tensors])
    assert all(place == places[0] for place in places)
