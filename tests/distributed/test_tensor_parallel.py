"""The parts of a copy that several ranks share: together they are the whole, and what cannot be split is
refused."""

import copy
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from ivgr.core.errors import UserError
from ivgr.distributed.tensor_parallel import SETTING, WeightParts, check_node, tp_group_of, tp_ranks
from ivgr.models.lora import AdapterConfig
from ivgr.models.registry import find_family
from ivgr.models.skeleton import replace_parameters
from ivgr.models.tree_attention import tree_mask
from support.command_line import TINY, fails
from support.families import FAMILIES, tiny_family

LENGTH = 7


@contextmanager
def as_rank(rank, ranks):
    """In the body this process is one of `ranks` whose collectives move nothing."""
    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def split(model, parts):
    """A copy of `model` that holds a rank's parts."""
    shared = copy.deepcopy(model)
    pairs = zip(shared.parameters(), parts.dims, strict=True)
    replace_parameters(
        shared, {id(weight): nn.Parameter(parts.part(weight.detach(), dim)) for weight, dim in pairs}
    )
    parts.join(shared)
    return shared


def products(model, hidden):
    """What attention and MLP of every layer make of `hidden` (1, LENGTH, H)."""
    family = find_family(model.config.model_type)
    angles = family.language_model(model).rotary_emb(hidden, torch.arange(LENGTH).expand(3, 1, -1))
    mask = tree_mask(torch.full((1, LENGTH), LENGTH), hidden.dtype)
    found = []
    for layer in family.decoder_layers(model):
        options = {"position_embeddings": angles, "attention_mask": mask}
        found += [layer.self_attn(hidden_states=hidden, **options)[0], layer.mlp(hidden)]
    return torch.stack(found)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_parts_of_a_product_add_up_to_the_whole(family):
    """In double precision: attention with its heads and the MLP, in every layer, over two ranks."""
    model = tiny_family(family).double()
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(1, LENGTH, 32, generator=generator, dtype=torch.float64)
    whole, total = products(model, hidden), 0.0
    for rank in range(2):
        with as_rank(rank, 2) as tp_group:
            shared = split(model, WeightParts(model, tp_group))
            own = products(shared, hidden)
            assert tp_group_of(shared) is tp_group and tp_ranks(shared) == 2
            assert (own - whole).abs().max() > 0.1  # a part alone is far from the whole
            total = total + own
    torch.testing.assert_close(total, whole, rtol=0, atol=1e-13)


def test_a_rank_holds_half_of_every_layers_products_and_all_else():
    model = tiny_family("qwen2_vl")
    with as_rank(1, 2) as tp_group:
        shared = split(model, WeightParts(model, tp_group))
    for (name, own), weight in zip(shared.named_parameters(), model.parameters(), strict=True):
        halved = "language_model.layers." in name and "_proj" in name
        assert own.numel() == weight.numel() // (2 if halved else 1), name
    own, whole = (one.get_submodule("model.language_model.layers.0.self_attn") for one in (shared, model))
    assert torch.equal(own.k_proj.weight, whole.k_proj.weight[8:])
    assert torch.equal(own.k_proj.bias, whole.k_proj.bias[8:])
    assert torch.equal(own.o_proj.weight, whole.o_proj.weight[:, 16:])


@torch.no_grad()
def test_one_that_has_left_sums_nothing(monkeypatch):
    model, sums = tiny_family("qwen3_vl"), []
    with as_rank(0, 2) as tp_group:
        monkeypatch.setattr(dist, "all_reduce", lambda output, group: sums.append(group))
        parts = WeightParts(model, tp_group)
        parts.join(model)
        products(model, torch.ones(1, LENGTH, 32))
        assert sums == [tp_group] * 2 * 3
        parts.leave(model)
        products(model, torch.ones(1, LENGTH, 32))
        assert len(sums) == 2 * 3 and tp_group_of(model) is None and tp_ranks(model) == 1


def test_without_a_group_all_is_whole():
    model = tiny_family("qwen2_vl")
    parts = WeightParts(model)
    parts.join(model)
    assert set(parts.dims) == {None} and tp_group_of(model) is None
    weight = torch.ones(3, 3)
    assert parts.part(weight, None) is weight


@pytest.mark.parametrize(
    ("ranks", "text", "said"),
    [
        (8, {}, "4 attention heads: set it to 2"),
        (4, {}, "2 key/value heads: set it to 2"),
        (2, {"intermediate_size": 49}, "49 numbers of MLP width: set it to 1"),
    ],
)
def test_what_cannot_be_divided_names_the_most_that_can(ranks, text, said):
    model = tiny_family("qwen3_vl", **text)
    with as_rank(0, ranks) as tp_group, pytest.raises(UserError) as error:
        WeightParts(model, tp_group)
    assert str(error.value).startswith(f"{SETTING} is {ranks}, which does not divide the policy's {said}")


def test_a_copy_stays_within_a_node():
    check_node(4, 8)
    with pytest.raises(UserError, match=r"is 6, which does not divide the 8 GPUs of a node .*set it to 2"):
        check_node(6, 8)


def test_adapters_are_not_split():
    model = tiny_family("qwen2_vl")
    AdapterConfig(rank=2).inject(model)
    with as_rank(0, 2) as tp_group, pytest.raises(UserError, match="leave out model.trainable.adapter"):
        WeightParts(model, tp_group)


def test_a_bias_behind_the_sum_is_not_split():
    """It would be added by every rank."""
    model = tiny_family("qwen3_vl", attention_bias=True)
    with as_rank(0, 2) as tp_group, pytest.raises(UserError, match=r"another self_attn.o_proj .*set it to 1"):
        WeightParts(model, tp_group)


def test_a_node_of_one_gpu_is_refused_before_anything_is_loaded(capsys, tmp_path):
    strategy = '{"class_path": "ivgr.trainer.FSDP2", "init_args": {"rollout_tensor_parallel": 2}}'
    words = ["--trainer.strategy", strategy, "--trainer.default_root_dir", str(tmp_path)]
    error = fails(capsys, "fit", "--config", TINY, *words)
    assert f"{SETTING} is 2, which does not divide the 1 GPUs of a node" in error
