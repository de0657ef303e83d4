"""How PyTorch's Adam steps on a GPU; a CPU, where the fused kernel runs too, stands in for it."""

import pytest
import torch
from torch import nn

from ivgr.trainer import optimizer as module
from ivgr.trainer.optimizer import OptimizerConfig


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(module, "_on_gpu", lambda weight: True)


def step(optimizer, model):
    """Steps on fixed gradients; returns the switch that the step had."""
    for weight in model.parameters():
        weight.grad = torch.linspace(-1, 1, weight.numel()).view(weight.shape)
    seen = []
    watch = optimizer.register_step_pre_hook(lambda own, *_: seen.append(own.param_groups[0].get("fused")))
    optimizer.step()
    watch.remove()
    return seen[0]


def make(name="adamw", **options):
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    return OptimizerConfig(name=name, lr=0.1, options=options).create(model), model


def test_adam_steps_by_the_fused_kernel_with_the_same_numbers(on_gpu):
    optimizer, model = make()
    assert [step(optimizer, model) for _ in range(3)] == [True] * 3
    plain, other = make(foreach=False)
    assert [step(plain, other) for _ in range(3)] == [None] * 3
    torch.testing.assert_close(model.weight, other.weight)
    assert all(group["fused"] is None for group in optimizer.state_dict()["param_groups"])


@pytest.mark.parametrize("saved_on_gpu", [True, False])
def test_a_state_goes_on_whatever_made_it(monkeypatch, saved_on_gpu):
    monkeypatch.setattr(module, "_on_gpu", lambda weight: saved_on_gpu)
    first, model = make()
    step(first, model)
    monkeypatch.setattr(module, "_on_gpu", lambda weight: not saved_on_gpu)
    second, other = make()
    other.load_state_dict(model.state_dict())
    second.load_state_dict(first.state_dict())
    assert step(second, other) is (None if saved_on_gpu else True)
    step(first, model)
    torch.testing.assert_close(model.weight, other.weight)


@pytest.mark.parametrize(("name", "options"), [("adagrad", {}), ("sgd", {}), ("adamw", {"foreach": True})])
def test_other_optimizers_and_options_are_left_alone(on_gpu, name, options):
    optimizer, model = make(name, **options)
    assert not step(optimizer, model)


def test_on_a_cpu_nothing_is_fused():
    assert step(*make()) is None
