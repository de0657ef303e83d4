"""Branches in pages: the same tokens as in one tensor, whatever the pool holds."""

import pytest
import torch

import support.interpreter  # noqa: F401  before triton
from ivgr.core.query import rollouts_of
from ivgr.kernels.paged_attention import PAGE
from ivgr.models.lora import AdapterConfig
from ivgr.rollout import branches, paged_kv, room, sampling
from ivgr.rollout.attention import attend, attend_prefixes
from ivgr.rollout.branch_kv import DenseKV
from ivgr.rollout.branches import Branches
from ivgr.rollout.fused_step import FusedStep, fits_fused_step
from ivgr.rollout.paged_kv import PagedKV
from ivgr.rollout.sampling import SamplingConfig
from ivgr.rollout.transformers_engine import TransformersEngine
from support.families import FAMILIES, Words, make_tree, tiny_family

LIMIT = 12
SMALL = 4  # tokens of a page
CPU = torch.device("cpu")


def gathered(query, key, value, pages, table, position, prefixes, scaling):
    """What `attend_pages` computes, branch by branch."""
    outs, prefix = [], attend_prefixes(query, prefixes, scaling)
    for row, last in enumerate(position.tolist()):
        for part, new in zip(pages, (key, value), strict=True):
            part[table[row, last // SMALL], :, last % SMALL] = new[row]
        keys, values = (
            part[table[row].long()].transpose(0, 1).flatten(1, 2)[:, : last + 1] for part in pages
        )
        own, lse = attend(query[row], keys, values, torch.zeros(last + 1), scaling)
        share = torch.sigmoid(prefix[1][row] - lse)
        outs.append(share * prefix[0][row] + (1 - share) * own)
    return torch.stack(outs)


@pytest.fixture(scope="module")
def model():
    model = tiny_family("qwen2_vl")
    model.generation_config.eos_token_id = [7, 11]
    return model


def roll_out(model, sizes=(2, 1, 2), limit=LIMIT, **options):
    generator = torch.Generator().manual_seed(3)
    queries = [make_tree(model, generator, [(1, 2)], n, [[]] * n) for n in sizes]
    engine = TransformersEngine(SamplingConfig(group_size=3, max_new_tokens=limit), **options)
    engine.roll_out(model, Words(), queries, seed=4)
    return rollouts_of(queries)


@pytest.fixture(scope="module")
def dense(model):
    return roll_out(model)


@pytest.fixture
def paged(monkeypatch):
    """Small pages; the kernel itself, which its interpreter takes seconds for, where nothing else is said."""
    monkeypatch.setenv("IVGR_KERNELS", "triton")
    monkeypatch.setattr(paged_kv, "PAGE", SMALL)
    monkeypatch.setattr("ivgr.kernels.paged_attention.PAGE", SMALL)


@pytest.fixture
def emulated(paged, monkeypatch):
    monkeypatch.setattr(paged_kv, "attend_pages", gathered)
    monkeypatch.setattr(branches, "fits_fused_step", lambda model: False)
    monkeypatch.setattr(sampling, "uses_triton", lambda device: False)


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        torch.testing.assert_close(one.logp, other.logp, rtol=0, atol=1e-5)


def test_the_kernel_gives_the_same_tokens(model, paged, monkeypatch):
    found = roll_out(model, sizes=(1, 1), limit=6)
    monkeypatch.setenv("IVGR_KERNELS", "torch")
    same(found, roll_out(model, sizes=(1, 1), limit=6))


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_decodes_by_fused_steps(family, adapted, paged, monkeypatch):
    """With the log-probs of its own modules."""
    model = tiny_family(family)
    model.generation_config.eos_token_id = [7, 11]
    if adapted:
        AdapterConfig(rank=4).inject(model)
        for name, weight in model.named_parameters():
            if ".lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(1))
    assert fits_fused_step(model)
    passes, logits = [], FusedStep.logits
    monkeypatch.setattr(FusedStep, "logits", lambda *arguments: passes.append(1) or logits(*arguments))
    found = roll_out(model, sizes=(1,), limit=4)
    assert len(passes) == 3
    monkeypatch.setenv("IVGR_KERNELS", "torch")
    same(found, roll_out(model, sizes=(1,), limit=4))
    assert len(passes) == 3


@pytest.mark.parametrize("change", ["hidden_act", "sliding_window", "mlp"])
def test_other_layers_decode_by_their_own_modules(change):
    model = tiny_family("qwen2_vl")
    layer = model.model.language_model.layers[1]
    if change == "hidden_act":
        model.model.language_model.config.hidden_act = "gelu"
    elif change == "sliding_window":
        layer.self_attn.sliding_window = 8
    else:
        layer.mlp = torch.nn.Identity()
    assert not fits_fused_step(model)


@pytest.mark.parametrize("queries", [1, 64])
def test_pages_give_the_same_tokens(model, dense, emulated, queries):
    same(roll_out(model, batch_queries=queries), dense)


@pytest.mark.parametrize("interval", [1, 5])
def test_a_pool_that_runs_out_puts_branches_back(model, dense, emulated, monkeypatch, interval):
    """More branches are let in than the pool holds in the end."""
    monkeypatch.setattr(PagedKV, "free_branches", lambda self: len(self.free))
    init, put_back = PagedKV.__init__, []
    monkeypatch.setattr(
        PagedKV,
        "__init__",
        lambda self, branches, limit, tokens, device: init(self, branches, limit, LIMIT + 8, device),
    )
    init_branches = Branches.__init__

    def often(self, *arguments, **options):
        init_branches(self, *arguments, **options | {"interval": interval})
        back = self.rows.put_back
        self.rows.put_back = lambda row: (put_back.append(row), back(row))

    monkeypatch.setattr(Branches, "__init__", often)
    same(roll_out(model), dense)
    assert len(put_back) > 3


def test_pages_change_hands():
    kv = PagedKV(branches=3, limit=4 * PAGE, tokens=5 * PAGE, device=CPU)
    kv.add_layer(torch.zeros(1, 2, 1, 8))
    assert kv.kv[0][0].shape == (6, 2, PAGE, 8)
    assert kv.reserve({0: PAGE + 1, 1: PAGE}) and len(kv.free) == 2
    assert kv.reserve({0: PAGE + 2, 1: PAGE}) and len(kv.free) == 2
    owned = set(kv.owned[0])
    assert not kv.reserve({0: 4 * PAGE, 1: 2 * PAGE}) and set(kv.owned[0]) == owned
    kv.release(0, tokens=PAGE + 2)
    assert kv.reserve({1: 4 * PAGE}) and not kv.table[0].any()
    assert sorted(kv.table[1].tolist()) == sorted(kv.owned[1]) and 0 not in kv.owned[1]
    kv.select([1])
    assert kv.table.shape == (1, 4) and list(kv.owned) == [0] and kv.version == 1


def test_room_follows_the_lengths_of_those_that_ended():
    kv = PagedKV(branches=8, limit=2048, tokens=2048, device=CPU)
    assert kv.free_branches() == 2048 // 512
    kv.reserve({0: 1})
    assert kv.free_branches() == (2048 - 512) // 512
    kv.release(0, tokens=PAGE)
    assert kv.free_branches() == 2048 // PAGE


def test_one_tensor_has_no_bound_but_its_rows():
    assert DenseKV(3, 10, CPU).free_branches() is None


@pytest.mark.parametrize("limit", [100, 4096])
def test_more_branches_decode_together_where_they_take_pages(model, monkeypatch, limit):
    generator = torch.Generator().manual_seed(3)
    queries = [make_tree(model, generator, [(1, 2)], 2, [[]] * 2) for _ in range(64)]
    numbers = iter(range(1000))
    prompts = [
        room.Prompt(query, [(group, [next(numbers) for _ in range(5)]) for group in query.groups])
        for query in queries
    ]
    bytes_each = room.token_bytes(model.config, model.dtype)
    monkeypatch.setattr(room, "free_bytes", lambda device: 2e5 * bytes_each / room.SHARE)
    dense = room.cache_size(model, prompts, limit, 64, None)
    monkeypatch.setenv("IVGR_KERNELS", "triton")
    paged = room.cache_size(model, prompts, limit, 64, None)
    assert paged.tokens + paged.prefixes * paged.width <= 2e5
    if limit > room.EXPECTED:
        assert paged.branches > 4 * dense.branches
    else:
        assert paged == dense
