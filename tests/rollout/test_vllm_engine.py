"""VLLMEngine against the real signatures of vLLM, and against TransformersEngine.

The module behind it is fake (see fake_vllm.py); tests/test_vllm_gpu.py runs the real one.
"""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ivgr.cli.main import main
from ivgr.core.errors import UserError
from ivgr.core.prompts import Prompts
from ivgr.core.query import rollouts_of
from ivgr.data.encode import QueryEncoder
from ivgr.models.forward import banned_ids
from ivgr.packing.prefix_tree import pack_queries
from ivgr.rewards.rewards import Rewards
from ivgr.rewards.scorer import Scorer
from ivgr.rollout import vllm_engine as engine_module
from ivgr.rollout.sampling import SamplingConfig
from ivgr.rollout.transformers_engine import TransformersEngine
from ivgr.rollout.vllm_engine import VLLMEngine, check_device
from ivgr.toy import RuleJudge
from ivgr.toy.world import World, draw_samples
from ivgr.trainer.loss import PolicyLossConfig
from ivgr.trainer.policy_update import PolicyUpdate
from ivgr.trainer.reference import FrozenReference
from ivgr.trainer.rl_step import RLStep
from ivgr.trainer.update_config import UpdateConfig
from support import fake_vllm
from support.one_rank import OneRank
from support.vllm_signatures import SIGNATURES, installed_signatures

TINY = str(Path(__file__).parents[2] / "configs" / "tiny.yaml")


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    """A fake vllm, which needs no GPU."""
    for name, module in fake_vllm.fake_modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(engine_module, "check_device", lambda device: None)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")


def short_engine(*, group_size: int = 5, top_p: float = 0.99, **settings) -> VLLMEngine:
    """Of prompts up to 300 tokens and responses up to 24."""
    sampling = SamplingConfig(group_size=group_size, top_p=top_p, max_new_tokens=24)
    return VLLMEngine(sampling, max_prompt_tokens=300, **settings)


def queries_of(tiny, count):
    """Of both kinds; the last one has no image."""
    encoder = QueryEncoder(tiny[1], "qwen2_vl", Prompts())
    samples = list(draw_samples(World("train", count, seed=9)))
    samples[-1] = replace(samples[-1], images=(), boxes=(), labels=(), kind="single")
    return [encoder(sample) for sample in samples]


def answers(engine, model, tiny, queries):
    queries = [replace(query, groups=[replace(g, rollouts=[]) for g in query.groups]) for query in queries]
    engine.answer(model, tiny[1].tokenizer, queries)
    return rollouts_of(queries)


def test_greedy_answers_are_those_of_the_transformers_engine(tiny):
    queries = queries_of(tiny, 7)
    own = answers(TransformersEngine(SamplingConfig(max_new_tokens=24)), tiny[0], tiny, queries)
    theirs = answers(short_engine(batch_queries=3), tiny[0], tiny, queries)
    assert len(own) == len(theirs) > 10 and len({rollout.text for rollout in own}) > 5
    for mine, other in zip(own, theirs, strict=True):
        assert mine.tokens.tolist() == other.tokens.tolist() and mine.text == other.text
        assert mine.truncated == other.truncated
        torch.testing.assert_close(mine.logp, other.logp, atol=1e-4, rtol=0)
        assert torch.equal(mine.sampling_logp, other.sampling_logp)


def test_every_wake_brings_the_policys_latest_weights(tiny):
    """The fake forgets its weights in sleep, and fills what it was not given with NaN."""
    queries, policy = queries_of(tiny, 3), copy.deepcopy(tiny[0])
    engine, before = short_engine(), None
    for scale in (1.0, 1.3):
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.mul_(scale)
        own = answers(TransformersEngine(SamplingConfig(max_new_tokens=24)), policy, tiny, queries)
        theirs = answers(engine, policy, tiny, queries)
        tokens = [rollout.tokens.tolist() for rollout in theirs]
        assert tokens == [rollout.tokens.tolist() for rollout in own] and tokens != before
        before = tokens
    assert len(fake_vllm.LLM.made) == 1


def test_calls_come_in_order(tiny):
    engine, queries = short_engine(group_size=2, batch_queries=2), queries_of(tiny, 3)
    assert not fake_vllm.LLM.made
    engine.roll_out(tiny[0], tiny[1].tokenizer, queries, seed=1)
    counts = [sum(len(query.groups) for query in part) for part in (queries[:2], queries[2:])]
    keep, load = [("apply_model",)] * 2
    assert fake_vllm.LLM.made[0].calls == [
        *(keep, ("sleep", 2)),
        *(("wake_up", "weights"), load, ("wake_up", "kv_cache")),
        *(("reset_prefix_cache",), ("reset_mm_cache",), ("reset_encoder_cache",)),
        *(("generate", count) for count in counts),
        *(keep, ("sleep", 2)),
    ]
    assert fake_vllm.LLM.made[0].asleep == fake_vllm.TAGS
    assert engine_module.os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_an_empty_batch_wakes_nothing(tiny):
    VLLMEngine().answer(tiny[0], tiny[1].tokenizer, [])
    assert not fake_vllm.LLM.made


def test_rollouts_hold_full_vocabulary_log_probs_and_say_what_is_not_known(tiny):
    queries = queries_of(tiny, 4)
    short_engine(group_size=3, top_p=0.9).roll_out(tiny[0], tiny[1].tokenizer, queries, seed=1)
    assert all(len(group.rollouts) == 3 for query in queries for group in query.groups)
    (pack,) = pack_queries(tiny[0], queries, 1 << 40)
    with torch.no_grad():
        log_p = tiny[0].lm_head(pack.response_hidden(tiny[0])).log_softmax(-1)
    scored = log_p.gather(1, pack.targets[:, None])[:, 0]
    torch.testing.assert_close(scored, pack.rollout_logp, atol=1e-4, rtol=0)
    assert all(rollout.sampling_logp.isnan().all() for rollout in rollouts_of(queries))
    assert all(len(rollout.sampling_logp) == len(rollout.tokens) for rollout in rollouts_of(queries))


def test_each_group_has_its_seed_and_the_same_run_its_tokens(tiny):
    drawn = []
    for seed in (1, 1, 2):
        queries = queries_of(tiny, 3)
        short_engine(group_size=2).roll_out(tiny[0], tiny[1].tokenizer, queries, seed)
        drawn.append([rollout.tokens.tolist() for rollout in rollouts_of(queries)])
    assert drawn[0] == drawn[1] != drawn[2]
    seeds = [params.seed for llm in fake_vllm.LLM.made[::2] for _, params in llm.seen]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 - 2 for seed in seeds)


def test_a_query_is_drawn_by_its_place_in_the_iteration_on_any_rank(tiny):
    queries = queries_of(tiny, 4)
    for place, query in enumerate(queries):
        query.sample_index = place
    for part in (queries, queries[2:]):
        short_engine(group_size=2).roll_out(tiny[0], tiny[1].tokenizer, part, seed=1)
    whole, rest = ([params.seed for _, params in llm.seen] for llm in fake_vllm.LLM.made[-2:])
    assert whole[-len(rest) :] == rest and len(set(whole)) == len(whole) == 7


def test_prompts_hold_a_token_an_image_and_vision_tokens_are_banned(tiny):
    queries = queries_of(tiny, 3)
    answers(short_engine(), tiny[0], tiny, queries)
    pad = tiny[0].config.image_token_id
    groups = [(query, group) for query in queries for group in query.groups]
    for (query, group), (prompt, params) in zip(groups, fake_vllm.LLM.made[0].seen, strict=True):
        messages = Prompts().messages(query.sample.question, len(query.sample.images), group.stream)
        text = tiny[1].apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert prompt["prompt_token_ids"] == tiny[1].tokenizer(text).input_ids
        images = prompt.get("multi_modal_data", {}).get("image", [])
        assert len(images) == prompt["prompt_token_ids"].count(pad) == len(query.sample.images)
        assert [image.tobytes() for image in images] == [i.tobytes() for i in query.sample.open_images()]
        assert params.logit_bias == dict.fromkeys(banned_ids(tiny[0]), -torch.inf)
        assert params.seed is None and params.temperature == 0


def test_an_iteration_logs_the_mismatch_and_corrects_it(tiny):
    """A trainer whose weights are the engine's: no mismatch, weights of one."""
    policy = copy.deepcopy(tiny[0])
    engine = short_engine(group_size=2)
    update = PolicyUpdate(
        policy=policy,
        reference=FrozenReference().load(policy),
        config=UpdateConfig(loss=PolicyLossConfig(importance_cap=2.0), mini_batches=1, token_budget=10**9),
        stepper=OneRank(lambda: 0.0),
        temperature=engine.sampling.temperature,
    )
    iteration = RLStep(
        policy=policy,
        tokenizer=tiny[1].tokenizer,
        engine=engine,
        scorer=Scorer(Rewards(), RuleJudge()),
        update=update,
    )
    metrics = iteration.run(queries_of(tiny, 3), seed=4)
    assert 0 < metrics["rollout/logp_mismatch"] < 1e-4
    assert metrics["policy/importance_mean"] == pytest.approx(1, abs=1e-4)
    assert metrics["policy/importance_capped"] == 0


def test_another_pixel_budget_names_both_lengths(tiny):
    queries = queries_of(tiny, 2)
    expected = len(queries[0].prefix) + len(queries[0].groups[0].instruction)
    budget = {"mm_processor_kwargs": {"size": {"shortest_edge": 784, "longest_edge": 4 * 784}}}
    with pytest.raises(
        UserError, match=rf"\d+ tokens in vLLM and {expected} in the policy.*mm_processor_kwargs"
    ):
        answers(short_engine(options=budget), tiny[0], tiny, queries)


@pytest.mark.parametrize(
    ("sampling", "named"),
    [
        ({"group_size": 1}, "model.engine.sampling.group_size is 1"),
        ({"temperature": 0.8}, "model.engine.sampling.temperature is 0.8.*TransformersEngine"),
        ({"temperature": 0.0}, "model.engine.sampling.temperature is 0.0"),
        ({"top_p": 0.0}, "model.engine.sampling.top_p is 0.0"),
        ({"max_new_tokens": 0}, "model.engine.sampling.max_new_tokens is 0"),
    ],
)
def test_sampling_that_cannot_work_is_named(sampling, named):
    with pytest.raises(UserError, match=named):
        VLLMEngine(SamplingConfig(**sampling))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"options": {"logprobs_mode": "processed_logprobs"}}, "options: logprobs_mode"),
        ({"options": {"tensor_parallel_size": 2}}, "options: tensor_parallel_size"),
        ({"options": {"hf_overrides": {"tie_word_embeddings": False}}}, "options: hf_overrides"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, named):
    with pytest.raises(UserError, match=named):
        VLLMEngine(**settings)


def test_what_the_policy_cannot_hold_is_named(tiny):
    queries = queries_of(tiny, 2)
    with pytest.raises(UserError, match=rf"{queries[0].sample.id}.*max_prompt_tokens 20"):
        answers(
            VLLMEngine(sampling=SamplingConfig(max_new_tokens=4), max_prompt_tokens=20),
            tiny[0],
            tiny,
            queries,
        )
    with pytest.raises(UserError, match="9216 together, more than the 8192 positions"):
        answers(VLLMEngine(), tiny[0], tiny, queries)
    nameless = copy.deepcopy(tiny[0])
    nameless.name_or_path = ""
    with pytest.raises(UserError, match="set model.engine.checkpoint"):
        answers(short_engine(), nameless, tiny, queries)


@pytest.mark.parametrize("kind", ["missing", "folder", "another kind", "empty"])
def test_a_checkpoint_that_is_no_model_is_one_line(tiny, tmp_path, kind):
    path = tmp_path / "model"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(b"\xff\xd8" * (kind == "another kind"))
    with pytest.raises(UserError, match=f"^model.engine.checkpoint: '{path}' is no .*") as refused:
        answers(short_engine(checkpoint=str(path)), tiny[0], tiny, queries_of(tiny, 1))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("device", "named"), [("cpu", "needs a GPU"), ("cuda:1", "CUDA_VISIBLE_DEVICES=1")])
def test_the_wrong_device_is_named(device, named):
    with pytest.raises(UserError, match=named):
        check_device(torch.device(device))
    check_device(torch.device("cuda:0"))


def test_a_missing_package_is_one_line(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r'pip install "ivgr\[vllm\]"'):
        answers(short_engine(), tiny[0], tiny, queries_of(tiny, 2))


def test_a_config_with_the_engine_prints_without_vllm(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "fit",
                "--config",
                TINY,
                "--model.engine",
                "ivgr.rollout.vllm_engine.VLLMEngine",
                "--print_config",
            ]
        )
    assert stop.value.code == 0 and "gpu_memory_utilization: 0.4" in capsys.readouterr().out


def test_the_committed_signatures_are_those_of_their_version():
    """Needs that very vllm installed; calls are bound against any that is."""
    committed = json.loads(SIGNATURES.read_text())
    if (found := installed_signatures()) is None or found["version"] != committed["version"]:
        pytest.skip(f"vllm {committed['version']} is not installed")
    assert found == committed
