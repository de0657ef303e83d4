"""What crosses into vLLM: each weight finds its one place or is named; prompts fold and unfold."""

import copy
from types import SimpleNamespace

import fake_vllm
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ivgr.errors import UserError
from ivgr.policy.load import Pretrained
from ivgr.rollout.vllm_requests import fold_images
from ivgr.rollout.weights import load_weights_checked


@pytest.fixture(scope="module")
def policy():
    return Pretrained("tiny").load()[0]


@pytest.fixture
def places(policy):
    """vLLM's model and the policy's weights by name."""
    return fake_vllm.FakeModel(policy), dict(policy.named_parameters())


def load(model, weights):
    load_weights_checked(SimpleNamespace(named_parameters=lambda: weights.items()), model)


def test_weights_fit_one_to_one(places, policy):
    model, weights = places
    load(model, weights)
    assert len(model.parameters) < len(weights)
    copied = copy.deepcopy(policy)
    model.write_to(copied)
    assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), policy.parameters(), strict=True))


KEY = "model.language_model.layers.0.self_attn.k_proj.weight"


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
        (lambda w: w.pop("model.language_model.embed_tokens.weight"), "language_model.model.embed_tokens"),
        (lambda w: w.clear(), r"of vLLM are not filled exactly once: .*, …; model.engine.checkpoint"),
    ],
)
def test_a_weight_too_few_or_too_many_is_named(places, change, named):
    model, weights = places
    change(weights)
    with pytest.raises(UserError, match=named):
        load(model, weights)


def test_one_filled_twice_is_named(places):
    model, weights = places
    model.shards["language_model.model.norm.weight"]["lm_head.weight"] = (128,)
    model.route = lambda name, route=model.route: (
        ("language_model.model.norm.weight", name) if name == "lm_head.weight" else route(name)
    )
    model.parameters["language_model.model.norm.weight"] = torch.zeros(256)
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
