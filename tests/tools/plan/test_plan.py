"""`ivgr plan` against measurement on tiny models: weights, states and keys exactly, activations
within 15 %, operations as PyTorch counts them."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ivgr.kernels.paged_attention import PAGE
from ivgr.models.pretrained import Pretrained
from ivgr.models.registry import find_family
from ivgr.packing.prefix_tree import pack_queries, tree_length
from ivgr.rollout import room
from ivgr.rollout.batch_rows import Prompt
from ivgr.rollout.paged_kv import PagedKV
from ivgr.rollout.room import token_bytes
from ivgr.tools.bench.bench_setting import Setting, build_model, build_queries
from ivgr.tools.bench.measure import LiveBytes
from ivgr.tools.bench.phases import build_iteration
from ivgr.tools.plan.flops import estimate_work, matrix_flops
from ivgr.tools.plan.model_shape import read_shape
from ivgr.tools.plan.plan_memory import (
    activation_bytes,
    around_bytes,
    block_bytes,
    cache_bytes,
    copy_bytes,
    fit_batch,
    kv_bytes,
    largest_tree,
    layer_bytes,
    resident,
    update,
)
from ivgr.tools.plan.run_spec import AssumedLengths, RunSpec, measure_states, read_run
from ivgr.tools.random_checkpoint import configure, draw_model
from ivgr.toy.tokenizer import build_tokenizer
from ivgr.trainer.optimizer import OptimizerConfig
from support.command_line import CONFIGS
from support.families import FAMILIES
from support.trees import prefilled

LONG = 2048  # tokens of the longest response
SETTING = Setting(image_tokens=256, response=32, group_size=3)


def run_of(setting: Setting, **changes) -> RunSpec:
    """The plan of an update on the bench's queries, whose images have two marks each."""
    typical = AssumedLengths(
        setting.image_tokens, setting.question + 2, setting.instruction, setting.response
    )
    run = read_run(CONFIGS / "tiny.yaml", 1, typical)
    fields = {"paired": setting.queries, "single": 0, "group": setting.group_size, "updates": 1}
    fields |= {
        "lengths": typical,
        "longest": typical,
        "token_budget": 1 << 40,
        "batch_queries": setting.queries,
    }
    return replace(run, **fields | changes)


def tiny_model(family: str, dtype: torch.dtype):
    model = draw_model(configure(find_family(family), "tiny", None, build_tokenizer()), dtype, 0)
    model.model.visual.requires_grad_(True)
    return model


def test_weights_gradients_states_and_reference_are_exact():
    run, model = run_of(SETTING), Pretrained("tiny").load()[0]
    held = {item.name: item.bytes for item in resident(run)}
    held |= {item.name: item.bytes for item in update(run) if item.name == "gradients"}
    nbytes = sum(weight.nbytes for weight in model.parameters())
    assert held == {"weights": nbytes, "gradients": nbytes, "optimizer": 2 * nbytes, "reference": nbytes}


@pytest.mark.parametrize(("name", "numbers"), [("adamw", 2), ("sgd", 1), ("lion", 1)])
def test_optimizer_state_is_what_a_step_leaves(name, numbers):
    assert measure_states(OptimizerConfig(name=name).create) == numbers


def test_keys_and_values_are_exact():
    """In pages, as on a GPU; one page is nobody's."""
    policy = build_model(SETTING)
    setting = replace(SETTING, queries=3)
    queries = build_queries(setting, policy, rollouts=False)
    (pack,) = pack_queries(policy, queries, 1 << 40, join=False)
    longest = 2 * PAGE
    cache = prefilled(policy, pack, siblings=6, limit=longest)
    held = sum(part.nbytes for pair in cache.prefix_kv for part in pair)
    assert kv_bytes(run_of(setting), sum(map(tree_length, queries))) == held
    pool = PagedKV(cache.size.branches, longest, cache.size.tokens, policy.device)
    for keys, _ in cache.prefix_kv:
        pool.add_layer(keys)
    held += sum(part[1:].nbytes for pair in pool.kv for part in pair)
    assert cache_bytes(run_of(setting, max_new_tokens=longest)) == held


@pytest.mark.parametrize("free", [0.0, 4e6, 40e6, 1e9])
def test_as_many_queries_decode_together_as_the_engine_takes(monkeypatch, free):
    policy, setting = build_model(SETTING), replace(SETTING, queries=9)
    prompts = [
        Prompt(query, [(group, [3 * n, 3 * n + 1, 3 * n + 2]) for n, group in enumerate(query.groups)])
        for query in build_queries(setting, policy, rollouts=False)
    ]
    monkeypatch.setattr(room, "free_bytes", lambda device: free)
    monkeypatch.setattr(room, "uses_triton", lambda device: True)
    size = room.cache_size(policy, prompts, LONG, 64, None)
    fitted = fit_batch(run_of(setting, batch_queries=64, max_new_tokens=LONG), free)
    assert fitted.batch_queries == max(1, size.branches // 6)
    tokens = size.prefixes * size.width + size.tokens
    if size.branches >= 6:
        assert cache_bytes(fitted) == pytest.approx(
            tokens * token_bytes(policy.config, policy.dtype), rel=1e-3
        )


def test_ranks_that_share_a_copy_hold_a_part_of_its_layers_and_of_their_keys():
    run = replace(run_of(SETTING), gpus=4, sharded=True)
    shared, model = replace(run, tp_ranks=2), Pretrained("tiny").load()[0]
    layers = find_family(model.config.model_type).decoder_layers(model)
    halved = sum(weight.nbytes for name, weight in layers.named_parameters() if "_proj" in name) // 2
    # Norms stay whole, and are counted as halved.
    assert copy_bytes(run) - copy_bytes(shared) == pytest.approx(halved, rel=0.01)
    assert kv_bytes(shared, 100) == kv_bytes(run, 50)
    alone, together = (fit_batch(replace(one, batch_queries=64), 1e12) for one in (run, shared))
    assert together.batch_queries == 2 * alone.batch_queries
    assert cache_bytes(together) == cache_bytes(alone)


@pytest.mark.parametrize("queries", [1, 3])
def test_activations_of_an_update(queries):
    setting = replace(SETTING, queries=queries)
    run, phase = run_of(setting), build_iteration(setting).update
    batches = phase.pack(build_queries(setting, phase.policy, rollouts=True))
    phase.infer_reference(batches)
    ((pack,),) = batches
    assert pack.ids.numel() == queries * largest_tree(run).tokens
    with LiveBytes() as live:
        statistics, _ = phase._policy_statistics(pack)
        kept = live.live
    del statistics
    planned = next(item.bytes for item in update(run) if item.name == "activations")
    assert planned == pytest.approx(kept, rel=0.15)


def test_activations_with_checkpointing():
    setting = replace(SETTING, image_tokens=512, checkpointing=True)
    run, phase = run_of(setting, checkpointing=True), build_iteration(setting).update
    batches = phase.pack(build_queries(setting, phase.policy, rollouts=True))
    phase.infer_reference(batches)
    with LiveBytes() as live:
        phase._policy_statistics(batches[0][0])[0].loss.backward()
    gradients = sum(weight.grad.nbytes for weight in phase.policy.parameters())
    planned = sum(item.bytes for item in update(run) if item.name in ("activations", "packs"))
    assert planned == pytest.approx(live.peak - gradients, rel=0.15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_layers_of_each_family_keep(family, dtype):
    model = tiny_model(family, dtype)
    shape, tokens, patches = read_shape(model.config), 192, 256
    run = replace(run_of(SETTING), shape=shape, weight=dtype.itemsize, compute=dtype.itemsize)
    hidden = torch.zeros(1, tokens, shape.hidden, dtype=dtype, requires_grad=True)
    positions = torch.arange(tokens).expand(3, 1, -1).clone()
    mask = torch.zeros(1, 1, tokens, tokens, dtype=dtype)
    with LiveBytes() as live:
        output = model.model.language_model(
            inputs_embeds=hidden, position_ids=positions, attention_mask=mask, use_cache=False
        )
        language = live.live
    del output
    planned = shape.layers_count * layer_bytes(run, tokens) + around_bytes(run, tokens, 0)
    assert planned == pytest.approx(language, rel=0.15)
    pixels = torch.zeros(patches, shape.features, dtype=dtype)
    with LiveBytes() as live:
        output = model.model.visual(pixels, grid_thw=torch.tensor([[1, 16, 16]]))
        tower = live.live
    del output
    planned = shape.tower_depth * block_bytes(run, patches) + around_bytes(run, 0, patches)
    assert planned == pytest.approx(tower, rel=0.15)


def test_a_frozen_tower_and_checkpointing_keep_less():
    run = run_of(SETTING)
    whole, frozen, inputs = (
        activation_bytes(replace(run, **change), 1000, 1000)
        for change in ({}, {"frozen_tower": True}, {"checkpointing": True})
    )
    assert frozen < whole and inputs < whole
    assert run.trained - replace(run, frozen_tower=True).trained == run.shape.tower


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_are_those_that_pytorch_counts(family):
    """Matrices alone: attention is counted over the mask there."""
    model = tiny_model(family, torch.float32)
    run = replace(run_of(SETTING), shape=read_shape(model.config))
    (pack,) = pack_queries(model, build_queries(SETTING, model, rollouts=True), 1 << 40)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.lm_head(pack.response_hidden(model))
    counted = counter.get_flop_counts()["Global"]
    matrices = sum(count for op, count in counted.items() if "attention" not in str(op))
    planned = matrix_flops(run, pack.ids.numel(), len(pack.targets), 1)
    assert planned == pytest.approx(matrices, rel=0.05)


def test_tokens_with_the_tree_and_without():
    run = run_of(SETTING)
    work = estimate_work(replace(run, paired=4, single=3), 100, 1000)
    prefix, group = 256 + 26, 3
    assert work.tokens == 4 * (prefix + 2 * (24 + group * 32)) + 3 * (prefix + 24 + group * 32)
    assert work.rows == (4 * 2 + 3) * group * (prefix + 24 + 32)
    assert 0 < work.seconds[0] < work.seconds[1]


def test_adapters_are_those_of_peft():
    peft = pytest.importorskip("peft", reason='needs pip install "ivgr[lora]"')
    model = Pretrained("tiny").load()[0]
    target = r"model\.language_model\.layers\..*_proj"
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=target))
    trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    run = run_of(SETTING, rank=4)
    assert run.trained == trained
    assert next(item.bytes for item in resident(run) if item.name == "reference") == 0
