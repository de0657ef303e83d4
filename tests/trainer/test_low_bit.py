"""Optimizers with 8-bit states and stochastic rounding."""

import io
import sys

import pytest
import torch
from torch import nn

from ivgr.core.errors import UserError
from ivgr.trainer.optimizer import OptimizerConfig, ScheduleConfig


def test_a_missing_torchao_is_one_clear_line(monkeypatch):
    monkeypatch.delitem(sys.modules, "torchao.optim", raising=False)
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(UserError, match=r'pip install "ivgr\[lowbit\]"'):
        OptimizerConfig(name="torchao.AdamW8bit")


def test_unknown_names_are_one_clear_line():
    with pytest.raises(UserError, match="'adamx', and timm has no such"):
        OptimizerConfig(name="adamx")


def ones():
    layer = nn.Linear(128, 64).bfloat16()
    nn.init.ones_(layer.weight)
    return layer


def train(layer, optimizer, schedule, steps):
    for step in steps:
        schedule.step(step)
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step()
        assert isinstance(optimizer.param_groups[0]["lr"], float)
        yield optimizer.param_groups[0]["lr"]


@pytest.mark.slow  # torchao compiles its step
def test_stochastic_rounding_keeps_small_steps_and_states_are_restored():
    pytest.importorskip("torchao")
    with pytest.raises(UserError, match="no such optimizer"):
        OptimizerConfig(name="torchao.AdamW9bit")
    torch.manual_seed(0)
    settings = OptimizerConfig(
        name="torchao.AdamW8bit", lr=1e-4, weight_decay=0.0, options={"bf16_stochastic_round": True}
    )
    layer = ones()
    optimizer = settings.create(layer)
    schedule = ScheduleConfig(name="cosine", warmup=0.0).create(optimizer, 200)
    rates = list(train(layer, optimizer, schedule, range(100)))
    assert 1 - layer.weight.float().mean().item() == pytest.approx(sum(rates), rel=0.1)
    assert optimizer.state[layer.weight]["exp_avg"].codes.dtype == torch.uint8
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    saved.seek(0)
    restored = settings.create(again := ones())
    restored.load_state_dict(torch.load(saved, weights_only=True))
    for name in ("exp_avg", "exp_avg_sq"):
        old, new = optimizer.state[layer.weight][name], restored.state[again.weight][name]
        assert torch.equal(old.codes, new.codes) and torch.equal(old.scale, new.scale) and old.codes.any()
    schedule = ScheduleConfig(name="cosine", warmup=0.0).create(restored, 200)
    assert next(iter(train(again, restored, schedule, range(100, 110)))) < rates[-1]


@pytest.mark.slow
def test_rounding_is_drawn_by_the_seed_and_the_step_alone():
    """Two runs whose global generators are elsewhere, one of them resumed; neither generator moves."""
    pytest.importorskip("torchao")
    settings = OptimizerConfig(
        name="torchao.AdamW8bit", lr=1e-4, weight_decay=0.0, options={"bf16_stochastic_round": True}
    )

    def run(layer, optimizer, steps, seed):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        list(
            train(layer, optimizer, ScheduleConfig(name="constant", warmup=0.0).create(optimizer, 200), steps)
        )
        assert torch.equal(torch.get_rng_state(), before)

    unbroken, broken, resumed = ones(), ones(), ones()
    run(unbroken, settings.create(unbroken), range(6), seed=1)
    first = settings.create(broken)
    run(broken, first, range(3), seed=2)
    second = settings.create(resumed)
    resumed.load_state_dict(broken.state_dict())
    second.load_state_dict(first.state_dict())
    run(resumed, second, range(3, 6), seed=3)
    assert torch.equal(unbroken.weight, resumed.weight) and len(unbroken.weight.unique()) > 1
