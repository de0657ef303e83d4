"""A chat template that opens `<think>` itself: what it opens is part of the response everywhere."""

from types import SimpleNamespace

import pytest
import torch

from ivgr.core.prompts import Prompts
from ivgr.core.response import format_reward
from ivgr.data.encode import QueryEncoder
from ivgr.data.sft_encode import Demonstration, encode_demonstration
from ivgr.models.pretrained import Pretrained
from ivgr.rewards.archive import Archive
from ivgr.rewards.rewards import Rewards
from ivgr.rewards.scorer import Scorer
from ivgr.rollout.sampling import SamplingConfig
from ivgr.rollout.transformers_engine import TransformersEngine
from ivgr.rollout.vllm_requests import read_completion
from ivgr.tools.inference.modes import respond
from ivgr.tools.inference.streaming import StreamingEngine
from ivgr.tools.probes.annotated_response import read_response
from ivgr.tools.probes.causal import _write_out
from support.samples import RecordingJudge, make_sample

GENERATION = "<|im_start|>assistant\n"
BOX = "<box>[0,0,1000,1000]</box>"
SAID = f"the bag {BOX} is red</think><answer>red</answer>"


@pytest.fixture(scope="module")
def tiny():
    return Pretrained("tiny").load()


def encoder_with(tiny, ending: str) -> QueryEncoder:
    """Of the tiny model, its generation prompt followed by `ending`."""
    _, processor = Pretrained("tiny").load()
    template = processor.tokenizer.chat_template or processor.chat_template
    written = "{% if add_generation_prompt %}" + GENERATION
    assert written in template
    changed = template.replace(written, written + ending)
    processor.chat_template = processor.tokenizer.chat_template = changed
    return QueryEncoder(processor, "qwen2_vl", Prompts())


@pytest.fixture(scope="module")
def opening(tiny) -> QueryEncoder:
    return encoder_with(tiny, "<think>\n")


class Completing:
    """An engine whose every response is `said`, by the path that vLLM's completions take."""

    def __init__(self, said: str) -> None:
        self.said = said

    def answer(self, policy, tokenizer, queries) -> None:
        ids = tokenizer(self.said).input_ids
        logprobs = SimpleNamespace(logprobs=[0.0] * len(ids))
        completion = SimpleNamespace(token_ids=ids, logprobs=logprobs)
        for query in queries:
            for group in query.groups:
                group.rollouts.append(read_completion(completion, tokenizer, ids[-1:], True, group.opened))


@pytest.mark.parametrize(
    ("ending", "opened"),
    [
        ("", ""),
        ("<think>", "<think>"),
        ("<think>\n", "<think>\n"),
        ("<think>\n\n</think>\n\n", ""),
        ("think>", ""),
    ],
)
def test_only_a_block_that_is_left_open_is_part_of_the_response(tiny, ending, opened):
    encoder = encoder_with(tiny, ending)
    query = encoder(make_sample(question="What is <think>", boxes=((1, 1, 9, 9),)))
    assert [group.opened for group in query.groups] == [opened] * 2
    prompt = encoder.processor.tokenizer.decode(torch.cat([query.prefix, query.groups[0].instruction]))
    assert prompt.endswith(GENERATION + ending)


def test_the_engine_of_the_product_begins_with_what_was_opened(tiny, opening):
    model, processor = tiny
    plain = QueryEncoder(processor, "qwen2_vl", Prompts())
    engine = TransformersEngine(SamplingConfig(group_size=2, max_new_tokens=4))
    for encoder, opened in ((opening, "<think>\n"), (plain, "")):
        query = encoder(make_sample(boxes=((1, 1, 9, 9),)))
        engine.roll_out(model, processor.tokenizer, [query], 0)
        for rollout in (r for group in query.groups for r in group.rollouts):
            decoded = processor.tokenizer.decode(rollout.tokens, skip_special_tokens=True)
            assert rollout.text == opened + decoded and len(rollout.tokens) <= 4


def test_a_live_answer_begins_with_what_was_opened(tiny, opening, capsys):
    query = opening(make_sample(boxes=((1, 1, 9, 9),)), ("textual",))
    speaker = StreamingEngine(TransformersEngine(SamplingConfig(max_new_tokens=4)), stream_reply=True)
    speaker.answer(tiny[0], opening.processor.tokenizer, [query])
    ((rollout,),) = (group.rollouts for group in query.groups)
    assert rollout.text.startswith("<think>\n")
    assert capsys.readouterr().out == f"[textual]\n{rollout.text}\n"


def test_format_archive_and_judge_see_the_whole_response(tiny, opening):
    query = opening(make_sample(boxes=((0, 0, 16, 12),)))
    Completing(SAID).answer(None, opening.processor.tokenizer, [query])
    query.groups[1].rollouts[0].text = "<think>\nthe bag is red</think><answer>red</answer>"
    judge, archive = RecordingJudge(), Archive()
    Scorer(Rewards(archive=archive), judge).score([query])
    assert [group.rollouts[0].terms["format"] for group in query.groups] == [1.0, 1.0]
    assert archive.reference(query) == f"\nthe bag {BOX} is red"
    assert judge.comparisons == [(f"\nthe bag {BOX} is red", "\nthe bag is red", query.frame)]
    assert query.groups[1].rollouts[0].terms["consistency"] == 0.7


def test_replies_and_probes_read_it(tiny, opening):
    [reply] = respond(None, opening, Completing(SAID), [make_sample(boxes=((1, 1, 9, 9),))], "grounded")
    assert (reply.think, reply.answer) == (f"the bag {BOX} is red", "red")
    assert reply.text == "<think>\n" + SAID
    query, tokenizer = opening(make_sample(boxes=((1, 1, 9, 9),)), ("grounded",)), opening.processor.tokenizer
    Completing(SAID).answer(None, tokenizer, [query])
    reading = read_response(query, tokenizer)
    ((rollout,),) = (group.rollouts for group in reading.query.groups)
    assert rollout.tokens.tolist() == tokenizer(SAID).input_ids  # the prompt holds what was opened
    said = tokenizer.decode([rollout.tokens[i] for i in reading.think])
    assert said.strip() == f"the bag {BOX} is red"
    asked, (_, _, (_, places)) = _write_out(query, "so it is red", tokenizer)
    tokens = asked.groups[0].rollouts[0].tokens
    assert tokenizer.decode(tokens).startswith("so it is red</think><answer>")
    assert tokenizer.decode([tokens[i] for i in places]).strip() == "so it is red"


def test_a_demonstration_goes_on_from_what_was_opened(tiny, opening):
    sample = make_sample(boxes=((1, 1, 9, 9),), reasoning={"grounded": "It is red."})
    query = encode_demonstration(Demonstration(sample, "grounded"), opening)
    ((rollout,),) = (group.rollouts for group in query.groups)
    tokenizer = opening.processor.tokenizer
    said = tokenizer.decode(rollout.tokens, skip_special_tokens=True)
    assert said == "It is red.</think><answer>red</answer>"
    assert rollout.text == "<think>\n" + said and format_reward(rollout.text) == 1
    plain = QueryEncoder(tiny[1], "qwen2_vl", Prompts())
    query = encode_demonstration(Demonstration(sample, "grounded"), plain)
    assert query.groups[0].rollouts[0].text == "<think>It is red.</think><answer>red</answer>"
