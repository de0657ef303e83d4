"""Weights split over two ranks, in every training form and in the cold start, give what one
process gives; their checkpoints and models can be read by one."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from ivgr.cli.main import main
from ivgr.data.shards import write_shards
from ivgr.toy.world import World, draw_samples
from support.launch import CONFIG, fit, same_figures, scalars, write_world

FSDP2 = {"trainer.strategy": "fsdp2"}
FORMS = {
    "checkpointing": {"model.trainable.gradient_checkpointing": "true"},
    "frozen tower": {"model.trainable.freeze": "[vision]", "model.trainable.gradient_checkpointing": "true"},
    "adapter": {"model.trainable.adapter.rank": 4, "model.trainable.gradient_checkpointing": "true"},
    "adapter on vision": {
        "model.trainable.adapter.rank": 4,
        "model.trainable.adapter.targets": "language+vision",
    },
}
pytestmark = [pytest.mark.timeout(300), pytest.mark.multiprocess]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


def weights_of(folder):
    return dict(AutoModelForImageTextToText.from_pretrained(folder).named_parameters())


def export(run, folder):
    main(["export", str(run / "checkpoints" / "last.ckpt"), str(folder)])
    return weights_of(folder)


def same(found, expected):
    assert found.keys() == expected.keys() and len(found) > 60
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_training_is_the_same_with_split_weights(world, tmp_path, form):
    settings = world | FORMS[form] | {"model.iterations": 3}
    whole = fit(1, tmp_path / "whole", settings)
    split = fit(2, tmp_path / "split", settings | FSDP2)
    for name in ("update/loss", "rollout/kl", "rollout/entropy", "update/grad_norm"):
        found, expected = scalars(split, name), scalars(whole, name)
        same_figures(found, expected, name)
        assert len(set(expected)) == 3
    same(export(split, tmp_path / "split_model"), export(whole, tmp_path / "whole_model"))


@pytest.mark.slow
def test_passes_in_bfloat16_keep_weights_in_float32(world, tmp_path):
    """The recipes' setting: the trained weights move by less than bfloat16 could tell."""
    settings = world | {"model.iterations": 2, "model.update.optimizer.lr": 1e-6}
    strategy = {
        "trainer.strategy": "ivgr.trainer.fsdp_strategy.FSDP2",
        "trainer.strategy.param_dtype": "bfloat16",
    }
    run = fit(2, tmp_path / "run", settings | strategy)
    trained, begun = export(run, tmp_path / "model"), weights_of(CONFIG.parents[1] / "src/ivgr/toy/tiny")
    assert all(weight.dtype == torch.float32 for weight in trained.values())
    moved = [(trained[name] - weight).abs().max().item() for name, weight in begun.items()]
    assert 0 < max(moved) < 1e-4 and sum(change > 0 for change in moved) > 60
    assert all(0 < norm < 100 for norm in scalars(run, "update/grad_norm"))


@pytest.fixture(scope="module")
def lessons(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lessons")
    samples = list(draw_samples(World("train", 24, seed=4)))
    shards = str(write_shards(folder, "train", samples, 8)[0].parent)
    return {
        "data.train": shards, "data.val": shards, "data.val_queries": 2, "data.steps": 4, "data.batch": 4,
        "model.engine.sampling.max_new_tokens": 4, "model.update.token_budget": 200,
        "trainer.log_every_n_steps": 1, "trainer.accelerator": "cpu",
    }  # fmt: skip


SFT = CONFIG.with_name("distill_sft.yaml")


@pytest.fixture(scope="module")
def cold_start(lessons, tmp_path_factory):
    return fit(1, tmp_path_factory.mktemp("one"), lessons, config=SFT)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_cold_start_on_two_processes_is_the_same(lessons, cold_start, tmp_path, strategy):
    several = fit(2, tmp_path, lessons | {"trainer.strategy": strategy}, config=SFT)
    for name in ("update/loss", "update/grad_norm"):
        same_figures(scalars(several, name), scalars(cold_start, name), name)
    assert len(scalars(cold_start, "update/loss")) == 4
    same(weights_of(several / "model"), weights_of(cold_start / "model"))
