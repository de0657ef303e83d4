"""VLLMEngine with the real vllm; needs a GPU and `pip install -e ".[dev,vllm]"`."""

import importlib.util

import pytest
import torch

from ivgr.core.prompts import Prompts
from ivgr.core.query import rollouts_of
from ivgr.data.encode import QueryEncoder
from ivgr.models.pretrained import Pretrained
from ivgr.packing.prefix_tree import pack_queries
from ivgr.rollout.sampling import SamplingConfig
from ivgr.rollout.vllm_engine import VLLMEngine
from ivgr.toy.world import World, draw_samples

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or importlib.util.find_spec("vllm") is None,
        reason="needs a GPU and vllm",
    ),
]


def test_log_probs_are_the_policys_before_and_after_an_update():
    """Prompts, images, weights and log-probs all have to be right for this; one engine, since
    vLLM lets only one a process sleep."""
    policy, processor = Pretrained("tiny").load()
    policy.eval().cuda()
    encoder = QueryEncoder(processor, policy.config.model_type, Prompts())
    samples = list(draw_samples(World("val", 8, seed=5)))
    options = {"enforce_eager": True}
    engine = VLLMEngine(
        sampling=SamplingConfig(group_size=3, max_new_tokens=60),
        max_prompt_tokens=500,
        gpu_memory_utilization=0.2,
        options=options,
    )
    texts = []
    for scale in (1.0, 1.1):
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.mul_(scale)
        queries = [encoder(sample) for sample in samples]
        engine.roll_out(policy, processor.tokenizer, queries, seed=1)
        engine.answer(policy, processor.tokenizer, queries)
        (pack,) = pack_queries(policy, queries, 1 << 40)
        with torch.no_grad():
            log_p = policy.lm_head(pack.response_hidden(policy)).float().log_softmax(-1)
        scored = log_p.gather(1, pack.targets[:, None])[:, 0]
        assert (scored - pack.rollout_logp).abs().mean() < 0.01
        assert all(len(group.rollouts) == 4 for query in queries for group in query.groups)
        texts.append([rollout.text for rollout in rollouts_of(queries)])
    assert texts[0] != texts[1]
