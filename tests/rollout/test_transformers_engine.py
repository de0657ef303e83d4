"""The rollout engine against stock `generate`, the scoring forward and known distributions."""

import copy

import pytest
import torch

from ivgr.core.errors import UserError
from ivgr.core.prompts import GROUNDED, TEXTUAL, Prompts
from ivgr.core.query import rollouts_of
from ivgr.data.encode import QueryEncoder
from ivgr.packing.prefix_tree import pack_queries
from ivgr.rollout.sampling import Sampling, SamplingConfig
from ivgr.rollout.transformers_engine import TransformersEngine
from ivgr.toy.world import World, draw_samples
from ivgr.trainer.rl_step import assign_advantages
from support.greedy import queries_of, stock_greedy


@pytest.fixture(scope="module")
def encoder(tiny):
    model, processor = tiny
    return QueryEncoder(processor, model.config.model_type, Prompts())


def test_greedy_text_equals_stock_generate_on_64_prompts(tiny, encoder):
    queries = [query for query in queries_of(encoder, 40) if query.group(GROUNDED)][:32]
    TransformersEngine(SamplingConfig(max_new_tokens=72)).answer(tiny[0], tiny[1].tokenizer, queries)
    compared = 0
    for query in queries:
        for group in query.groups:
            assert group.rollouts[0].text == stock_greedy(tiny, query, group.stream)
            compared += 1
    assert compared == 64


def test_prompts_equal_the_stock_processors(tiny, encoder):
    for query in queries_of(encoder, 6):
        for group in query.groups:
            messages = Prompts().messages(query.sample.question, 1, group.stream)
            text = tiny[1].apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            stock = tiny[1](text=[text], images=query.sample.open_images(), return_tensors="pt")
            assert torch.equal(torch.cat([query.prefix, group.instruction]), stock["input_ids"][0])
            torch.testing.assert_close(query.pixel_values, stock["pixel_values"])


def test_recorded_logps_equal_the_scoring_forward(tiny, encoder):
    model, processor = tiny
    engine = TransformersEngine(SamplingConfig(group_size=3, temperature=0.8, top_p=0.9, max_new_tokens=40))
    queries = queries_of(encoder, 5)
    engine.roll_out(model, processor.tokenizer, queries, seed=1)
    (pack,) = pack_queries(model, queries, 1 << 40)
    with torch.no_grad():
        log_p = (model.lm_head(pack.response_hidden(model)) / 0.8).log_softmax(-1)
    logp = log_p.gather(1, pack.targets[:, None])[:, 0]
    torch.testing.assert_close(logp, pack.rollout_logp, atol=1e-4, rtol=0)
    sampling = torch.cat([rollout.sampling_logp for rollout in rollouts_of(queries)])
    assert (sampling >= pack.rollout_logp - 1e-5).all()
    assert len(rollouts_of(queries)) == 3 * sum(len(query.groups) for query in queries)


def test_same_seed_same_tokens_other_seed_other_tokens(tiny, encoder):
    drawn = []
    for seed in (1, 1, 2):
        queries = queries_of(encoder, 4)
        TransformersEngine(SamplingConfig(group_size=2, max_new_tokens=30)).roll_out(
            tiny[0], tiny[1].tokenizer, queries, seed
        )
        drawn.append([rollout.tokens.tolist() for rollout in rollouts_of(queries)])
    assert drawn[0] == drawn[1] != drawn[2]


def test_truncation_is_marked(tiny, encoder):
    queries = queries_of(encoder, 3)
    TransformersEngine(SamplingConfig(max_new_tokens=3)).answer(tiny[0], tiny[1].tokenizer, queries)
    assert all(rollout.truncated and len(rollout.tokens) == 3 for rollout in rollouts_of(queries))


def test_a_hostile_policy_cannot_emit_vision_tokens(tiny, encoder):
    model = copy.deepcopy(tiny[0])
    model.config.tie_word_embeddings = False
    model.lm_head = torch.nn.Linear(128, len(tiny[1].tokenizer))
    torch.nn.init.zeros_(model.lm_head.weight)
    with torch.no_grad():
        model.lm_head.bias.zero_()[model.config.image_token_id] = 50.0
    queries = queries_of(encoder, 2)
    TransformersEngine(SamplingConfig(max_new_tokens=20)).roll_out(model, tiny[1].tokenizer, queries, 0)
    emitted = torch.cat([rollout.tokens for rollout in rollouts_of(queries)])
    assert model.config.image_token_id not in emitted


def test_samples_follow_the_truncated_distribution():
    probabilities = torch.tensor([0.4, 0.3, 0.2, 0.06, 0.04])
    sampling = Sampling(temperature=1.0, top_p=0.85, banned=(1,))
    draws = 20_000
    draw = torch.rand(draws, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    token, logp, sampling_logp = sampling.choose(probabilities.log().expand(draws, -1), draw)
    kept = torch.tensor([0.4, 0, 0.2, 0, 0]) / 0.6  # without 1, 0.4 and 0.2 hold 0.857 of the rest
    counts = torch.bincount(token, minlength=5)
    assert counts[[1, 3, 4]].sum() == 0
    expected = kept[[0, 2]] * draws
    chi_square = ((counts[[0, 2]] - expected) ** 2 / expected).sum()
    assert chi_square < 10.8  # p = 0.001 at one degree of freedom
    torch.testing.assert_close(logp, probabilities.log()[token])
    torch.testing.assert_close(sampling_logp, kept.log()[token])


def test_overlong_prompts_are_refused_by_name(tiny):
    encoder = QueryEncoder(tiny[1], "qwen2_vl", Prompts(), max_prompt_tokens=20)
    sample = next(iter(draw_samples(World("val", 1, seed=5))))
    with pytest.raises(UserError, match=f"{sample.id}.*max_prompt_tokens 20"):
        encoder(sample)


def test_streams_share_image_and_question(encoder, tiny):
    query = queries_of(encoder, 1)[0]
    text = tiny[1].tokenizer.decode(query.prefix)
    assert query.sample.question in text and "<|image_pad|>" in text
    assert [group.stream for group in query.groups] == [GROUNDED, TEXTUAL]
    instruction = tiny[1].tokenizer.decode(query.group(GROUNDED).instruction)
    assert "<box>" in instruction and "<box>" not in text


def test_advantages_are_taken_within_a_stream(tiny, encoder):
    queries = queries_of(encoder, 2)
    TransformersEngine(SamplingConfig(group_size=2, max_new_tokens=2)).roll_out(
        tiny[0], tiny[1].tokenizer, queries, 0
    )
    for query in queries:
        for index, group in enumerate(query.groups):
            for n, rollout in enumerate(group.rollouts):
                rollout.reward = 100.0 * index + n
    assign_advantages(queries)
    for rollout, sign in zip(rollouts_of(queries), [-1, 1] * 9, strict=False):
        assert rollout.advantage == pytest.approx(sign * 2**-0.5, abs=1e-5)
