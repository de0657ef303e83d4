"""Master weights: a bf16 policy is stepped as fp32 AdamW would step its copies."""

import io

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ivgr.cli.main import main
from ivgr.core.errors import UserError
from ivgr.trainer.optimizer import OptimizerConfig
from support.checkpoints import CONFIG, SMALL

NAMES = ("adamw", "sgd", "muon", "lion", "sgdw")


def gradients(step, model):
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        gradient = torch.randn(parameter.shape, generator=generator).to(torch.bfloat16)
        parameter.grad = gradient.to(parameter.dtype)


def layers(dtype=torch.bfloat16):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)).bfloat16().to(dtype)


def settings(name, master):
    return OptimizerConfig(name=name, lr=1e-3, weight_decay=0.1, master=master)


def train(model, optimizer, steps):
    for step in steps:
        gradients(step, model)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", NAMES)
def test_the_copies_are_those_of_an_fp32_optimizer_bit_for_bit(name):
    model, whole = layers(), layers(torch.float32)
    places = [parameter.data_ptr() for parameter in model.parameters()]
    train(model, optimizer := settings(name, True).create(model), range(30))
    train(whole, settings(name, False).create(whole), range(30))
    for parameter, expected in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(optimizer.state[parameter]["master"], expected)
        assert torch.equal(parameter, expected.bfloat16()) and parameter.dtype == torch.bfloat16
    assert [parameter.data_ptr() for parameter in model.parameters()] == places


def test_without_copies_small_steps_are_lost():
    """The reason for them: a step of 1e-6 is nothing to a bf16 weight of 1."""
    moved = {}
    for master in (False, True):
        model = nn.Linear(4, 4).bfloat16()
        nn.init.ones_(model.weight)
        optimizer = OptimizerConfig(lr=1e-4, weight_decay=0, master=master).create(model)
        for _ in range(100):
            model.weight.grad = torch.ones_like(model.weight)
            optimizer.step()
        moved[master] = 1 - model.weight.float().mean().item()
    assert moved[False] == 0 and moved[True] == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_optimizer_goes_on_bit_for_bit(name):
    unbroken, model = layers(), layers()
    train(unbroken, settings(name, True).create(unbroken), range(20))
    train(model, optimizer := settings(name, True).create(model), range(10))
    saved = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), saved)
    saved.seek(0)
    weights, state = torch.load(saved, weights_only=True)
    again = layers()
    again.load_state_dict(weights)
    restored = settings(name, True).create(again)
    restored.load_state_dict(state)
    assert all(torch.equal(value, weights[key]) for key, value in again.state_dict().items())
    train(again, restored, range(10, 20))
    for parameter, expected in zip(again.parameters(), unbroken.parameters(), strict=True):
        assert torch.equal(parameter, expected)


def test_a_closure_computes_in_the_lower_precision():
    model, seen = layers(), []
    optimizer = settings("adamw", True).create(model)

    def closure():
        seen.append(model[0].weight.dtype)
        optimizer.zero_grad()
        loss = model(torch.ones(1, 6, dtype=torch.bfloat16)).square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(200)]
    assert seen == [torch.bfloat16] * 200 and losses[-1] < losses[0] / 2


def test_sharded_bf16_weights_are_refused(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model = fully_shard(layers(), mesh=init_device_mesh("cpu", (1,)))
        settings("adamw", False).create(model)
        with pytest.raises(UserError, match="model.update.optimizer.master"):
            settings("adamw", True).create(model)
    finally:
        dist.destroy_process_group()


def fit(root, *options):
    words = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    policy = ["--model.policy", "ivgr.models.pretrained.Pretrained", "--model.policy.dtype", "bfloat16"]
    precise = ["--model.update.optimizer.master", "true", "--model.update.optimizer.lr", "1e-4"]
    where = ["--trainer.default_root_dir", str(root)]
    main(["fit", "--config", str(CONFIG), *words, *policy, *precise, *where, *options])
    return torch.load(root / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.slow
def test_a_bf16_run_resumes_with_its_copies(tmp_path):
    whole = fit(tmp_path / "whole")
    fit(tmp_path / "broken", "--checkpoint_every", "1", "--trainer.max_steps", "2")
    broken = fit(tmp_path / "broken", "--ckpt_path", "last")
    states = [run["optimizer_states"][0]["state"] for run in (whole, broken)]
    assert states[0].keys() == states[1].keys() and len(states[0]) > 40
    for index, state in states[0].items():
        assert state["master"].dtype == state["exp_avg"].dtype == torch.float32
        assert all(torch.equal(value, states[1][index][key]) for key, value in state.items())
    for name, value in whole["state_dict"].items():
        assert value.dtype == torch.bfloat16 and torch.equal(value, broken["state_dict"][name])
