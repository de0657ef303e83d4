"""Weights split over ranks: fillers that leave no trace, and the copy that rolls out."""

import copy
import weakref
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy

from ivgr.core.prompts import Prompts
from ivgr.core.sample import Sample
from ivgr.data.encode import QueryEncoder
from ivgr.distributed.fsdp import Replica, run_pass, shard
from ivgr.kernels import fused_linear_logprob_kl
from ivgr.models.pretrained import Pretrained
from ivgr.models.trainable import checkpoint_layers
from ivgr.packing.prefix_tree import pack_queries
from ivgr.rollout.sampling import SamplingConfig
from ivgr.rollout.transformers_engine import TransformersEngine
from ivgr.toy.world import World, draw_samples
from ivgr.trainer import dummy_packs as pad_with_dummy_packs
from ivgr.trainer.dummy_packs import DummyPackPadder
from ivgr.trainer.fsdp_strategy import FSDP2
from support.families import FAMILIES, make_tree, tiny_family
from support.ranks import on_ranks

pytestmark = pytest.mark.multiprocess


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
    TransformersEngine(SamplingConfig(group_size=2, max_new_tokens=12)).roll_out(model, tokenizer, queries, 0)
    return pack_queries(model, queries, budget=1)


def gradients(model, packs):
    model.zero_grad()
    for pack in packs:
        statistics = fused_linear_logprob_kl(
            pack.response_hidden(model), model.lm_head, pack.targets,
            kl=None, token_loss=lambda logp, *_: -logp,
        )  # fmt: skip
        statistics.loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


def test_fillers_reach_the_layers_that_other_ranks_reach_and_add_nothing(tiny, monkeypatch):
    """This rank has one pack without an image; another has two, the first with one, and a third
    rank has three."""
    packs = packs_of(tiny, Sample("sum", "What is 2 + 2?", "4", "single", "math"))
    others = [[True, False], [False, False, True]]
    monkeypatch.setattr(pad_with_dummy_packs, "gather", lambda mine: [mine, *others])
    model = copy.deepcopy(tiny[0])
    filled = DummyPackPadder(model, tiny[1])(packs)
    assert [bool(pack.pixels) for pack in filled] == [True, False, True]
    assert [len(pack.targets) for pack in filled] == [len(packs[0].targets), 0, 0]
    expected, found = gradients(copy.deepcopy(model), packs), gradients(model, filled)
    for name, gradient in expected.items():
        if gradient is None:
            assert "visual" in name and not found[name].any(), name
        else:
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)


def test_packs_that_are_level_stay_what_they_are(tiny):
    packs = packs_of(tiny, *draw_samples(World("train", 2, seed=5)))
    assert all(a is b for a, b in zip(DummyPackPadder(tiny[0], tiny[1])(packs), packs, strict=True))


def test_the_copy_is_filled_once_until_it_expires(tiny, mesh):
    policy = copy.deepcopy(tiny[0])
    replica = Replica(policy, None)
    shard(policy, mesh, MixedPrecisionPolicy())
    whole = dict(tiny[0].named_parameters())
    filled = dict(replica.sync().named_parameters())
    assert (
        filled.keys() == whole.keys()
        and replica.model.lm_head.weight is filled["model.language_model.embed_tokens.weight"]
    )
    assert all(torch.equal(weight, whole[name]) for name, weight in filled.items())
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(1.0)
    replica.sync()
    assert all(torch.equal(weight, whole[name]) for name, weight in filled.items())
    kept = [weakref.ref(weight) for weight in filled.values()]
    del filled
    replica.invalidate()
    assert not any(weight() is not None for weight in kept)
    filled = dict(replica.sync().named_parameters())
    assert all(torch.equal(weight, whole[name] + 1.0) for name, weight in filled.items())


def split_as_the_recipes(policy, mesh):
    strategy = FSDP2(param_dtype="bfloat16")
    strategy._device_mesh = mesh
    return strategy.split(policy, None)


def moves_before_it_is_filled(mesh):
    model, _ = Pretrained("tiny").load()
    policy = copy.deepcopy(model)
    replica = split_as_the_recipes(policy, mesh)
    replica.model.to(torch.float64)  # copies, as a move to another device does
    replica.model.to(torch.bfloat16)
    for _ in range(2):
        filled = replica.sync()
        for (name, weight), own in zip(filled.named_parameters(), model.parameters(), strict=True):
            assert weight.dtype == torch.bfloat16 and torch.equal(weight, own.to(torch.bfloat16)), name
        replica.invalidate()
    for weight, own in zip(replica.gather_to_cpu(keep=True).parameters(), model.parameters(), strict=True):
        assert torch.equal(weight, own)


@pytest.mark.slow
def test_the_copy_moves_before_it_is_filled(tmp_path):
    on_ranks(moves_before_it_is_filled, tmp_path)


def scores_what_it_rolled_out(mesh):
    model, processor = Pretrained("tiny").load()
    model = model.eval()
    queries = [
        QueryEncoder(processor, "qwen2_vl", Prompts())(s) for s in draw_samples(World("train", 2, seed=5))
    ]
    replica = split_as_the_recipes(model, mesh)
    TransformersEngine(SamplingConfig(group_size=2, max_new_tokens=12)).roll_out(
        replica.sync(), processor.tokenizer, queries, 0
    )
    (pack,) = pack_queries(replica.model, queries, budget=1 << 40)

    def look(policy):
        pixels = torch.cat(pack.pixels)
        images = policy.model.get_image_features(pixels, pack.image_grid_thw, return_dict=True)
        logits = policy.lm_head(pack.response_hidden(policy))
        return torch.cat(list(images.pooler_output)), logits

    with torch.no_grad():
        rolled_out, split = look(replica.model), run_pass(model, lambda: look(model))
    assert all(part.dtype == torch.bfloat16 for part in split)
    assert all(map(torch.equal, rolled_out, split))


def test_the_split_policy_is_the_one_that_rolled_out(tmp_path):
    """Image features and logits in bfloat16, to the last bit."""
    on_ranks(scores_what_it_rolled_out, tmp_path)


def test_a_split_policy_scores_as_the_whole_one_and_lets_its_layers_go(tiny, mesh):
    (pack,) = packs_of(tiny, next(iter(draw_samples(World("train", 1, seed=5)))))
    policy = copy.deepcopy(tiny[0])
    shard(policy, mesh, MixedPrecisionPolicy())
    with torch.no_grad():
        found = run_pass(policy, lambda: policy.lm_head(pack.response_hidden(policy)))
        torch.testing.assert_close(found, tiny[0].lm_head(pack.response_hidden(tiny[0])))
    layer = policy.model.language_model.layers[0].mlp.down_proj.weight
    assert isinstance(layer, torch.distributed.tensor.DTensor)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_split_tower_attends_as_the_whole_one(family, mesh):
    """Checkpointed too, with windows and images of different lengths: features and gradients."""
    whole, generator = tiny_family(family), torch.Generator().manual_seed(0)
    queries = [make_tree(whole, generator, [(2, 3), (5, 3)], 1, [[3, 4]]) for _ in range(2)]
    (pack,) = pack_queries(whole, queries, budget=1 << 30)
    split = copy.deepcopy(whole)
    checkpoint_layers(split)
    shard(split, mesh, MixedPrecisionPolicy(cast_forward_inputs=False))
    for model in (whole, split):
        run_pass(model, partial(lambda each: pack.response_hidden(each).square().sum(), model)).backward()
    pairs = zip(split.named_parameters(), whole.parameters(), strict=True)
    for (name, weight), own in pairs:
        if own.grad is not None:
            torch.testing.assert_close(weight.grad.full_tensor(), own.grad, msg=name)
