"""Tool mode is worth what a policy has learned to see in crops: the shipped cold start never saw two
pictures in one prompt and loses by it, one that was shown some gains."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ivgr.cli.main import main
from ivgr.core.prompts import TEXTUAL
from ivgr.core.sample import Sample
from ivgr.data.shards import write_shards
from ivgr.tools.inference.crops import Cropping
from ivgr.tools.inference.modes import add_crops
from ivgr.tools.study.policy_report import ReportSettings, report_on
from ivgr.toy.world import World, draw_samples, write_world

CONFIG = Path(__file__).parents[2] / "configs" / "distill_sft.yaml"
STEPS, QUESTIONS = 200, 512


def look_again(sample: Sample) -> Sample:
    """The textual demonstration on what tool mode would show if the boxes were the gold ones."""
    (image,) = sample.open_images()
    shown = add_crops(sample, Cropping().look_again(sample.boxes, image.size))
    return replace(shown, reasoning={TEXTUAL: sample.reasoning[TEXTUAL]})


def demonstrations() -> Iterator[Sample]:
    """Of every ten samples the last five with crops."""
    for index, sample in enumerate(draw_samples(World("train", 5000, seed=5))):
        yield look_again(sample) if index % 10 >= 5 and sample.boxes else sample


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_cold_start_that_saw_crops_gains_by_tool_mode(tmp_path):
    train, val = tmp_path / "train", tmp_path / "val"
    write_shards(train, "train", demonstrations(), 500)
    write_world(val, World("val", QUESTIONS * 5 // 4))
    main([
        "fit", "--config", str(CONFIG), "--trainer.default_root_dir", str(tmp_path / "run"),
        "--data.train", str(train), "--data.val", str(val), "--data.val_queries", "16",
        "--data.steps", str(STEPS),
        "--model.update.optimizer.name", "muon", "--model.update.optimizer.lr", "5e-4",
    ])  # fmt: skip
    asked = ReportSettings("tiny", str(val), QUESTIONS, 16, 72, {})
    before, after = (
        report_on(replace(asked, policy=policy))["figures"]
        for policy in ("tiny", str(tmp_path / "run" / "model"))
    )
    for name in ("text/accuracy", "twice/accuracy", "tool/accuracy"):
        print(f"{name}: {before[name]:.3f}, having seen crops {after[name]:.3f}")
    assert before["tool/accuracy"] < before["text/accuracy"] - 0.1
    assert after["tool/accuracy"] > after["text/accuracy"] + 0.01
