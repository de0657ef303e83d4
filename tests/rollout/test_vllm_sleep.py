"""What a vLLM engine forgets in sleep, keeps too long, and how a call that fails leaves it."""

import copy
import functools
import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch

from ivgr.cli.main import main
from ivgr.core.errors import UserError
from ivgr.core.prompts import Prompts
from ivgr.core.query import rollouts_of
from ivgr.data.encode import QueryEncoder
from ivgr.models.pretrained import Pretrained
from ivgr.rollout import vllm_engine as engine_module
from ivgr.rollout.sampling import SamplingConfig
from ivgr.rollout.transformers_engine import TransformersEngine
from ivgr.rollout.vllm_engine import VLLMEngine
from ivgr.toy.world import World, draw_samples
from support import fake_vllm

LONGEST = 8
BRIEF = SamplingConfig(max_new_tokens=LONGEST)


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    for name, module in fake_vllm.fake_modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(engine_module, "check_device", lambda device: None)


load = functools.cache(lambda folder: Pretrained(folder).load())


class Trial:
    """A policy, the same questions again and again, and two engines that must agree."""

    def __init__(self, folder: str, **settings) -> None:
        policy, self.processor = load(folder)
        self.policy = copy.deepcopy(policy).eval()
        encoder = QueryEncoder(self.processor, self.policy.config.model_type, Prompts())
        samples = list(draw_samples(World("train", 2, seed=9)))
        samples[-1] = replace(samples[-1], images=(), boxes=(), labels=(), kind="single")
        self.queries = [encoder(sample) for sample in samples]
        self.engine = VLLMEngine(BRIEF, max_prompt_tokens=300, **settings)

    @property
    def llm(self) -> fake_vllm.LLM:
        return fake_vllm.LLM.made[-1]

    def change(self, part: str) -> None:
        """Other weights, by much, of the modules whose name holds `part`."""
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in self.policy.named_parameters():
                if part in name:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(2.0 * parameter.abs().mean() * noise)

    def ask(self, engine, queries=None) -> list[list[int]]:
        fresh = [
            replace(query, groups=[replace(group, rollouts=[]) for group in query.groups])
            for query in queries or self.queries
        ]
        engine.answer(self.policy, self.processor.tokenizer, fresh)
        return [rollout.tokens.tolist() for rollout in rollouts_of(fresh)]

    def check(self, queries=None) -> list[list[int]]:
        """Asks both; the engine must sleep afterwards, with nothing left of the call."""
        expected = self.ask(TransformersEngine(BRIEF), queries)
        assert self.ask(self.engine, queries) == expected
        self.check_rest()
        return expected

    def check_rest(self) -> None:
        engine = self.llm.llm_engine
        assert self.llm.asleep == fake_vllm.TAGS == engine.sleeping
        assert not (engine.output_processor.request_states or engine.computed)
        assert not (engine.prefixes or engine.images or engine.pixels)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3") / "model"
    main(["scratch", "qwen3_vl", "tiny", str(folder), "--dtype", "float32"])
    return folder


@pytest.mark.parametrize("part", ["visual", "language_model", ""])
def test_after_an_update_nothing_of_the_old_weights_is_used_for_the_same_images(part):
    trial = Trial("tiny")
    before = trial.check()
    trial.change(part)
    assert trial.check() != before


@pytest.mark.parametrize("part", ["visual", "language_model"])
def test_every_update_clears_the_caches_also_where_sleep_does_not(monkeypatch, part):
    monkeypatch.setattr(fake_vllm.Engine, "pause", lambda self: setattr(self, "paused", True))
    trial = Trial("tiny")
    asked = trial.ask(trial.engine)
    trial.change(part)
    assert asked != trial.ask(trial.engine) == trial.ask(TransformersEngine(BRIEF))


def test_a_prefix_cache_that_stays_is_no_ground_to_answer_from(monkeypatch):
    trial = Trial("tiny")
    monkeypatch.setattr(fake_vllm.LLM, "reset_prefix_cache", lambda self: False)
    with pytest.raises(RuntimeError, match="keeps its prefix cache"):
        trial.ask(trial.engine)
    trial.check_rest()


@pytest.mark.parametrize("part", ["make_prompt", "check_expansion"])
@pytest.mark.parametrize("level", [1, 2])
def test_after_an_exception_of_ours_the_next_call_is_right(monkeypatch, part, level):
    trial = Trial("tiny", sleep_level=level, batch_queries=1)
    trial.check()
    calls, real = [], getattr(engine_module, part)

    def fail_once(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise UserError(f"from {part}")
        return real(*arguments)

    monkeypatch.setattr(engine_module, part, fail_once)
    trial.change("")
    with pytest.raises(UserError, match=f"^from {part}$"):
        trial.ask(trial.engine)
    trial.check_rest()
    trial.change("")
    trial.check()


@pytest.mark.parametrize("where", ["wake_up", "apply_model", "step", "sleep", "asleep"])
@pytest.mark.parametrize("failure", [RuntimeError("from vLLM"), KeyboardInterrupt()])
def test_after_an_exception_of_vllms_the_next_call_is_right(where, failure):
    trial = Trial("tiny")
    trial.check()
    trial.change("")
    trial.llm.failures[where] = failure
    with pytest.raises(type(failure)):
        trial.ask(trial.engine)
    if "sleep" not in where:
        trial.check_rest()
    trial.change("")
    trial.check()


def test_an_engine_that_wakes_by_half_falls_asleep_again(monkeypatch):
    trial = Trial("tiny")
    trial.check()
    real = fake_vllm.LLM.wake_up

    def wake_up(llm, tags):
        if tags == ["kv_cache"]:
            llm._fail("half")
        real(llm, tags=tags)

    monkeypatch.setattr(fake_vllm.LLM, "wake_up", wake_up)
    trial.llm.failures["half"] = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        trial.ask(trial.engine)
    trial.check_rest()
    trial.change("")
    trial.check()


def test_what_failed_first_is_told_and_a_sleep_that_fails_then_beside_it(monkeypatch):
    trial = Trial("tiny")
    trial.check()

    def refuse(*_):
        trial.llm.failures["sleep"] = RuntimeError("no sleep")
        raise UserError("too long")

    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "make_prompt", refuse)
        with pytest.raises(UserError, match="too long") as error:
            trial.ask(trial.engine)
    assert error.value.__notes__ == ["vLLM could not be put to sleep (no sleep)"]
    trial.change("")
    trial.check()


@pytest.mark.parametrize("level", [1, 2])
def test_what_nobody_registered_outlives_sleep(qwen3, level):
    """A text alone reads Qwen3-VL's extra image features, which are zero for it, or were discarded."""
    trial = Trial(str(qwen3), sleep_level=level)
    alone = [query for query in trial.queries if query.image_grid_thw is None]
    trial.check(alone)
    assert len(trial.llm.model.deepstack_input_embeds) == 2
    trial.change("")
    trial.check()
    trial.llm.failures["asleep"] = RuntimeError("from vLLM")
    with pytest.raises(RuntimeError):
        trial.ask(trial.engine)
    trial.check(alone)


def test_buffers_are_the_models_own_though_weights_begin_as_noise():
    trial = Trial("tiny")
    trial.check()
    scale, shift = trial.llm.worker.saved.values()
    assert torch.equal(scale, torch.ones(3)) and torch.equal(shift, torch.zeros(3))


def test_scratch_says_that_qwen3s_rotary_frequencies_are_interleaved(qwen3):
    config = json.loads((qwen3 / "config.json").read_text())
    assert config["text_config"]["rope_parameters"]["mrope_interleaved"] is True


def test_a_qwen3_checkpoint_that_does_not_say_so_is_read_as_transformers_reads_it(qwen3, tmp_path):
    folder = tmp_path / "untold"
    shutil.copytree(qwen3, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["text_config"]["rope_parameters"]["mrope_interleaved"]
    (folder / "config.json").write_text(json.dumps(config))
    Trial(str(folder)).check()
