"""Weights split over ranks: fillers that leave no trace, and the copy that rolls out."""

import copy

import pytest
import torch
import torch.distributed as dist
from ivgr.kernels import fused_linear_logprob_kl
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy

from ivgr.data.encode import QueryEncoder
from ivgr.data.prompts import Prompts
from ivgr.data.sample import Sample
from ivgr.distributed import level
from ivgr.distributed.level import Leveller
from ivgr.distributed.shard import Replica, run_pass, shard
from ivgr.policy.load import Pretrained
from ivgr.rollout.engine import TransformersEngine
from ivgr.tree import pack_queries
from ivgr.world.write import World, draw_samples


@pytest.fixture(scope="module")
def tiny():
    model, processor = Pretrained("tiny").load()
    return model.eval(), QueryEncoder(processor, "qwen2_vl", Prompts()), processor.tokenizer


@pytest.fixture
def mesh(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def packs_of(tiny, *samples):
    model, encode, tokenizer = tiny
    queries = [encode(sample) for sample in samples]
    TransformersEngine(group_size=2, max_new_tokens=12).roll_out(model, tokenizer, queries, 0)
    return pack_queries(model, queries, budget=1)


def gradients(model, packs):
    model.zero_grad()
    for pack in packs:
        statistics = fused_linear_logprob_kl(
            pack.response_hidden(model), model.lm_head, None, None, pack.targets,
            kl=None, token_loss=lambda logp, *_: -logp,
        )  # fmt: skip
        statistics.loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


def test_fillers_reach_the_layers_that_other_ranks_reach_and_add_nothing(tiny, monkeypatch):
    """This rank has one pack without an image; another has two, the first with one, and a third
    rank has three."""
    packs = packs_of(tiny, Sample("sum", "What is 2 + 2?", "4", "single", "math"))
    others = [[True, False], [False, False, True]]
    monkeypatch.setattr(level, "gather", lambda mine: [mine, *others])
    model = copy.deepcopy(tiny[0])
    filled = Leveller(model, tiny[1])(packs)
    assert [pack.pixel_values is not None for pack in filled] == [True, False, True]
    assert [len(pack.targets) for pack in filled] == [len(packs[0].targets), 0, 0]
    expected, found = gradients(copy.deepcopy(model), packs), gradients(model, filled)
    for name, gradient in expected.items():
        if gradient is None:
            assert "visual" in name and not found[name].any(), name
        else:
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)


def test_packs_that_are_level_stay_what_they_are(tiny):
    packs = packs_of(tiny, *draw_samples(World("train", 2, seed=5)))
    assert all(a is b for a, b in zip(Leveller(tiny[0], tiny[1])(packs), packs, strict=True))


def test_the_copy_is_filled_once_until_it_expires(tiny, mesh):
    policy = copy.deepcopy(tiny[0])
    replica = Replica(policy, None)
    shard(policy, mesh, MixedPrecisionPolicy())
    whole = dict(tiny[0].named_parameters())
    filled = dict(replica.fill().named_parameters())
    assert (
        filled.keys() == whole.keys()
        and replica.model.lm_head.weight is filled["model.language_model.embed_tokens.weight"]
    )
    assert all(torch.equal(weight, whole[name]) for name, weight in filled.items())
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(1.0)
    replica.fill()
    assert all(torch.equal(weight, whole[name]) for name, weight in filled.items())
    replica.expire()
    assert not any(weight.untyped_storage().nbytes() for weight in filled.values())
    replica.fill()
    assert all(torch.equal(weight, whole[name] + 1.0) for name, weight in filled.items())


def test_a_split_policy_scores_as_the_whole_one_and_lets_its_layers_go(tiny, mesh):
    (pack,) = packs_of(tiny, next(iter(draw_samples(World("train", 1, seed=5)))))
    policy = copy.deepcopy(tiny[0])
    shard(policy, mesh, MixedPrecisionPolicy())
    with torch.no_grad():
        found = run_pass(policy, lambda: policy.lm_head(pack.response_hidden(policy)))
        torch.testing.assert_close(found, tiny[0].lm_head(pack.response_hidden(tiny[0])))
    layer = policy.model.language_model.layers[0].mlp.down_proj.weight
    assert isinstance(layer, torch.distributed.tensor.DTensor)
