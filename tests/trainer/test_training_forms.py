"""Forms of training on all three families: full, adapters, frozen parts, checkpointed layers."""

import sys

import pytest
import torch
from transformers import AutoModelForImageTextToText

from ivgr.core.errors import UserError
from ivgr.kernels import fused_linear_logprob_kl
from ivgr.models.lora import AdapterConfig
from ivgr.models.trainable import TrainableConfig
from ivgr.packing.prefix_tree import pack_queries
from ivgr.trainer.optimizer import OptimizerConfig
from ivgr.trainer.reference import FrozenReference
from support.checkpoints import fit_small, write_checkpoint
from support.families import FAMILIES, make_tree, tiny_family

FORMS = {
    "full": ["--model.trainable.gradient_checkpointing", "true"],
    "lora": ["--model.trainable.adapter.rank", "4"],
    "lora+vision": [
        "--model.trainable.adapter.rank",
        "4",
        "--model.trainable.adapter.targets",
        "language+vision",
    ],
    "frozen": ["--model.trainable.freeze", "[vision,embeddings]"],
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    return tiny_family(family)


@pytest.fixture
def pack(model):
    generator = torch.Generator().manual_seed(5)
    shapes = [([(2, 2)], 2), ([(1, 3), (2, 1)], 1)]
    trees = [make_tree(model, generator, images, n, [[5, 3], [4, 2]][:n]) for images, n in shapes]
    return pack_queries(model, trees, 1 << 40)[0]


def trained_names(family, root, monkeypatch, *options):
    """What three iterations of `ivgr fit` changed, as the checkpoint names it. Random weights
    earn no reward, so advantages are given."""
    monkeypatch.setattr("ivgr.trainer.rl_step.group_advantages", lambda rewards: [1.0, -1.0])
    policy = write_checkpoint(family, root / "policy")
    saved = torch.load(fit_small(policy, root, *options), weights_only=True)
    assert saved["ivgr"]["iteration"] == 3
    before = AutoModelForImageTextToText.from_pretrained(policy).state_dict()
    after = {name.removeprefix("policy."): value for name, value in saved["state_dict"].items()}
    base = {name.replace(".base_layer", ""): value for name, value in after.items() if "lora_" not in name}
    assert base.keys() == before.keys()
    adapters = {name for name, value in after.items() if "lora_B" in name and value.any()}
    return adapters | {name for name, value in base.items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("form", FORMS)
def test_three_iterations_train_what_the_form_says(family, tmp_path, monkeypatch, form):
    trained = trained_names(family, tmp_path, monkeypatch, *FORMS[form])
    vision = {name for name in trained if "visual" in name}
    adapters = {name for name in trained if "lora_B" in name}
    assert bool(vision) == (form in ("full", "lora+vision"))
    assert any("layers" in name for name in trained - vision)
    assert adapters == (trained if "lora" in form else set())
    assert ("model.language_model.embed_tokens.weight" in trained) == (form == "full")


def adapted(model, **settings):
    """With adapters that do something."""
    TrainableConfig(adapter=AdapterConfig(rank=3, **settings)).apply(model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@torch.no_grad()
def logp(model, pack):
    hidden = pack.response_hidden(model)
    return fused_linear_logprob_kl(hidden, model.lm_head, pack.targets, kl=None).logp


@pytest.mark.parametrize("targets", ["language", "language+vision"])
def test_the_reference_of_an_adapted_policy_is_the_base_model(model, pack, targets):
    base = logp(model, pack)
    adapted(model, targets=targets)
    own, trained = logp(model, pack), [p.requires_grad for p in model.parameters()]
    with FrozenReference().load(model).inference_model() as reference:
        assert torch.equal(logp(reference, pack), base)
        assert {id(p) for p in reference.parameters()} == {id(p) for p in model.parameters()}
    assert (own - base).abs().max() > 1e-2
    assert torch.equal(logp(model, pack), own)
    assert [p.requires_grad for p in model.parameters()] == trained


def test_fresh_adapters_change_nothing_and_come_from_the_seed(family, monkeypatch):
    def first(seed):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        model, state = tiny_family(family), torch.get_rng_state()
        AdapterConfig(rank=3).inject(model)
        assert torch.equal(torch.get_rng_state(), state)
        found = {name: p for name, p in model.named_parameters() if "lora" in name}
        assert all(not p.any() for name, p in found.items() if "lora_B" in name)
        return next(p for name, p in found.items() if "lora_A" in name)

    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))


def gradients(model, pack):
    model.zero_grad()
    hidden = pack.response_hidden(model)
    kept = {"kl": None, "token_loss": lambda logp, *_: -logp}
    loss = fused_linear_logprob_kl(hidden, model.lm_head, pack.targets, **kept).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize(
    "adapter", [None, AdapterConfig(rank=3), AdapterConfig(rank=3, targets="language+vision")]
)
def test_checkpointed_layers_give_the_same_gradients(model, pack, adapter):
    TrainableConfig(adapter=adapter).apply(model)
    loss, expected = gradients(model, pack)
    TrainableConfig(gradient_checkpointing=True).apply(model)
    calls = []
    layers = [model.model.language_model.layers[0].self_attn, model.model.visual.blocks[0].attn]
    for layer in layers:
        layer.register_forward_pre_hook(lambda layer, _: calls.append(layer))
    again, found = gradients(model, pack)
    assert calls.count(layers[0]) == 2  # again on the way back
    assert calls.count(layers[1]) == (1 if adapter and not adapter.on_vision else 2)
    assert torch.equal(again, loss) and found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_frozen_tower_builds_no_graph_and_the_optimizer_does_not_know_it(model, pack, checkpointing):
    TrainableConfig(freeze=("vision",), gradient_checkpointing=checkpointing).apply(model)
    images = []
    model.model.visual.register_forward_hook(lambda module, args, output: images.append(output))
    _, found = gradients(model, pack)
    tensors = [images[0].pooler_output, *(getattr(images[0], "deepstack_features", None) or [])]
    assert all(not tensor.requires_grad for part in tensors for tensor in part)
    assert found and not any("visual" in name for name in found)
    for weight_decay in (0.0, 0.01):
        groups = OptimizerConfig(weight_decay=weight_decay).create(model).param_groups
        known = {id(p) for group in groups for p in group["params"]}
        assert known == {id(p) for p in model.parameters() if p.requires_grad}


def test_an_offloaded_reference_goes_home(model, pack):
    """To the meta device and back, since there is no other here."""
    expected = logp(model, pack)
    reference = FrozenReference(device="cpu").load(model)
    places = [p.data_ptr() for p in reference.model.parameters()]
    model.to("meta")
    with reference.inference_model() as lent:
        assert {tensor.device.type for tensor in [*lent.parameters(), *lent.buffers()]} == {"meta"}
    assert [p.data_ptr() for p in reference.model.parameters()] == places
    assert torch.equal(logp(reference.model, pack), expected)


def test_a_reference_of_its_own_is_no_part_of_the_policy(model, pack):
    before = logp(model, pack)
    reference = FrozenReference().load(model)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    with reference.inference_model() as lent:
        assert torch.equal(logp(lent, pack), before)
        assert not any(p.requires_grad for p in lent.parameters())


def test_contradictions_are_one_clear_line(model, monkeypatch):
    with pytest.raises(UserError, match="model.trainable.freeze"):
        TrainableConfig(adapter=AdapterConfig(targets="language+vision"), freeze=("vision",))
    with pytest.raises(UserError, match="model.trainable.adapter.rank is 0"):
        AdapterConfig(rank=0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r'pip install "ivgr\[lora\]"'):
        AdapterConfig().inject(model)


def test_an_adapted_policys_reference_needs_no_other_place(model):
    with pytest.raises(UserError, match="model.reference.device"):
        FrozenReference(device="cpu").load(adapted(model))
