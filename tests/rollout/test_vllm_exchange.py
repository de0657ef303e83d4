"""What crosses into vLLM: each weight finds its one place or is named; prompts fold and unfold."""

import copy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ivgr.core.errors import UserError
from ivgr.models.lora import AdapterConfig, merge_adapters
from ivgr.models.pretrained import Pretrained
from ivgr.rollout.vllm_requests import fold_images
from ivgr.rollout.vllm_weights import load_weights, load_weights_checked
from support import fake_vllm


@pytest.fixture(scope="module")
def policy():
    return Pretrained("tiny").load()[0]


@pytest.fixture
def places(policy):
    """vLLM's model and the policy's weights by name."""
    return fake_vllm.FakeModel(policy), dict(policy.named_parameters())


def load(model, weights):
    load_weights_checked(named(weights), model)


def test_weights_fit_one_to_one(places, policy):
    model, weights = places
    load(model, weights)
    assert len(model.weights) < len(weights)
    copied = copy.deepcopy(policy)
    model.write_to(copied)
    assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), policy.parameters(), strict=True))


KEY = "model.language_model.layers.0.self_attn.k_proj.weight"
BELOW = KEY.replace("weight", "base_layer.weight")
NORM = "model.language_model.norm.weight"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: w.pop(KEY), "1 of vLLM are not filled exactly once: .*0.self_attn.qkv_proj.weight"),
        (
            lambda w: w.update({"model.visual.extra.bias": torch.zeros(3)}),
            "1 weights .* no place: .*extra.bias",
        ),
        (lambda w: w.update({"model.visual.extra.weight": torch.zeros(3)}), "no place: model.visual.extra"),
        (lambda w: w.update({KEY: torch.zeros(3, 4)}), f"no place: {KEY}; 1 of vLLM"),
        (lambda w: w.update({NORM: torch.zeros(7)}), f"no place: {NORM}; 1 of vLLM"),
        (lambda w: w.update({BELOW: w.pop(KEY)}), f"no place: {BELOW}; 1 of vLLM"),
        (lambda w: w.pop("model.language_model.embed_tokens.weight"), "language_model.model.embed_tokens"),
        (lambda w: w.clear(), r"of vLLM are not filled exactly once: .*, …; model.engine.checkpoint"),
    ],
)
def test_a_weight_too_few_or_too_many_is_named(places, change, named):
    model, weights = places
    change(weights)
    with pytest.raises(UserError, match=named):
        load(model, weights)


def named(weights):
    return SimpleNamespace(named_parameters=lambda: weights.items())


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda w: w.update({BELOW: w.pop(KEY)}), BELOW),
        (lambda w: w.update({KEY: torch.zeros(3, 4)}), KEY),
        (lambda w: w.update({NORM: torch.zeros(7)}), NORM),
        (lambda w: w.update({"model.visual.extra.weight": torch.zeros(3)}), "model.visual.extra.weight"),
    ],
)
def test_what_no_longer_fits_after_the_first_time_is_one_line(places, change, name):
    model, weights = places
    change(weights)
    with pytest.raises(UserError, match=f"does not take the policy's weight {name} ") as error:
        load_weights(named(weights), model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("failure", [torch.OutOfMemoryError("out of memory"), torch.AcceleratorError("lost")])
@pytest.mark.parametrize("load_all", [load_weights, load_weights_checked])
def test_a_fault_of_the_device_is_not_put_down_to_the_weight(places, failure, load_all):
    model, weights = places

    def fail(_):
        raise failure

    model.load_weights = fail
    with pytest.raises(type(failure)):
        load_all(named(weights), model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_arrive_as_merging_would_leave_them(dtype):
    adapted = Pretrained("tiny").load()[0].to(dtype)
    AdapterConfig(rank=4, targets="language+vision").inject(adapted)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    before = {name: parameter.clone() for name, parameter in adapted.named_parameters()}
    model, plain = fake_vllm.FakeModel(Pretrained("tiny").load()[0]), Pretrained("tiny").load()[0]
    load_weights_checked(adapted, model)
    assert all(torch.equal(before[name], parameter) for name, parameter in adapted.named_parameters())
    model.write_to(plain)
    merge_adapters(adapted)
    expected = dict(adapted.named_parameters())
    assert expected.keys() == dict(plain.named_parameters()).keys()
    assert all(torch.equal(p, expected[name].float()) for name, p in plain.named_parameters())
    assert not torch.equal(plain.state_dict()[KEY], Pretrained("tiny").load()[0].state_dict()[KEY])


def test_one_filled_twice_is_named(places):
    model, weights = places
    model.shards["language_model.model.norm.weight"]["lm_head.weight"] = (128,)
    model.route = lambda name, route=model.route: (
        ("language_model.model.norm.weight", name) if name == "lm_head.weight" else route(name)
    )
    model.weights["language_model.model.norm.weight"] = torch.zeros(256)
    load(model, weights | {"lm_head.weight": torch.zeros(128)})
    with pytest.raises(UserError, match="language_model.model.norm.weight"):
        load(model, weights)


@given(st.lists(st.tuples(st.lists(st.integers(1, 9), max_size=3), st.integers(1, 5)), max_size=4))
def test_folding_undoes_expansion_also_side_by_side(parts):
    folded = [token for words, _ in parts for token in [*words, 0]] + [3]
    counts = [count for _, count in parts]
    left = iter(counts)
    ids = [t for token in folded for t in [token] * (next(left) if token == 0 else 1)]
    found = fold_images(torch.tensor(ids), 0, torch.tensor(counts, dtype=torch.long))
    assert found.tolist() == folded
