"""The road of a lab, command by command: published rows are packed, a cold start is trained on them and
exported, reinforcement learning begins from it, is killed and goes on, and its policy is evaluated."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ivgr.cli.main import main
from ivgr.toy.world import World, draw_samples
from support.command_line import CONFIGS
from support.contents import differences
from support.judge_server import JudgeServer
from support.launch import finish, fit, rollouts, said, scalars, start
from support.published import write_published

pytestmark = [pytest.mark.timeout(600), pytest.mark.multiprocess]

COLD_START, RECIPE = CONFIGS / "qwen2vl_7b_sft.yaml", CONFIGS / "qwen2vl_7b.yaml"
SCENES, QUESTIONS = 40, 4
# What makes a recipe for 8 GPUs one for a CPU.
SMALL = {
    "trainer.accelerator": "cpu",
    "model.policy.max_pixels": 128 * 128,
    "model.update.token_budget": 2048,
    "data.val_queries": 2,
}
REINFORCE = {
    "data.prompts": 8,
    "data.paired_ratio": 0.5,
    "model.engine.sampling.group_size": 3,
    "model.engine.sampling.temperature": 0.5,
    "model.update.mini_batches": 2,
    "model.update.optimizer.lr": 1e-3,
    "checkpoint_every": 2,  # optimizer updates: every iteration
}

QUICK = {"steps": 2, "iterations": 2, "response": 6, "workers": 0}
# A cold start that teaches enough of the format for rewards to differ and for the judge to be asked.
LONG = {"steps": 60, "iterations": 4, "response": 40, "workers": 1}


def with_reasoning(rows: list[dict]) -> list[dict]:
    """The published rows as a cold start needs them; boxes in thousandths of the image."""
    drawn = {f"images/{sample.id}.jpg": sample for sample in draw_samples(World("train", SCENES, seed=5))}
    by_hand = {"grounded": "It is here <box>[10,10,500,500]</box>.", "textual": "It is in the picture."}
    for row in rows:
        sample = drawn.get(row["images"][0])
        row["reasoning"] = sample.reasoning if sample else by_hand
    return rows


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """A checkpoint as it is downloaded, packed shards, and a benchmark."""
    folder = tmp_path_factory.mktemp("given")
    main(["scratch", "qwen2_vl", "tiny", str(folder / "policy"), "--layers", "2", "--dtype", "float32"])
    write_published(folder / "rows", SCENES, with_reasoning)
    for name in ("train", "val"):
        words = ["--per_shard", "12", "--name", name]  # a shard for each reader of two ranks
        main(["pack", str(folder / "rows" / "rows.parquet"), str(folder / name), *words])
    main(["synth", str(folder / "quiz"), "--split", "val", "--count", str(QUESTIONS), "--seed", "5", "--tsv"])
    return folder


@pytest.fixture
def judge(monkeypatch) -> Iterator[JudgeServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with JudgeServer() as server:
        yield server


def settings_of(given: Path, policy: Path, ranks: int, length: dict) -> dict:
    return SMALL | {
        "trainer.strategy": "auto" if ranks == 1 else "fsdp2",
        "model.policy.path": policy,
        "model.engine.sampling.max_new_tokens": length["response"],
        "data.workers": length["workers"],
        "data.train": given / "train",
        "data.val": given / "val",
    }


def weights_of(folder: Path) -> dict:
    return load_file(folder / "model.safetensors")


def export(run: Path, folder: Path) -> Path:
    main(["export", str(run / "checkpoints" / "last.ckpt"), str(folder)])
    return folder


def kill_with_a_checkpoint(root: Path, ranks: int, settings: dict) -> None:
    """Starts a run and kills all of its ranks when a checkpoint lies there."""
    processes = start(ranks, root, settings, config=RECIPE)
    while not (root / "checkpoints" / "last.ckpt").exists():
        assert all(process.is_alive() for process in processes), said(root, 0)
        time.sleep(0.02)
    for process in processes:
        process.kill()
    assert finish(processes) == [-signal.SIGKILL] * ranks
    assert not (root / "summary.json").exists()


@pytest.mark.parametrize(
    ("ranks", "length"),
    [
        pytest.param(1, QUICK, id="quick"),
        pytest.param(1, LONG, marks=pytest.mark.slow, id="one"),
        pytest.param(2, LONG, marks=pytest.mark.slow, id="two"),
    ],
)
def test_from_published_rows_to_a_score(given, judge, tmp_path, ranks, length):
    settings = settings_of(given, given / "policy", ranks, length)
    lessons = {"data.batch": 8, "data.steps": length["steps"], "model.update.optimizer.lr": 3e-3}
    cold = fit(ranks, tmp_path / "cold", settings | lessons, config=COLD_START)
    begun = export(cold, tmp_path / "begun")
    assert differences(weights_of(begun), weights_of(cold / "model")) == []

    settings = settings_of(given, begun, ranks, length) | REINFORCE
    settings |= {"model.iterations": length["iterations"], "model.judge.base_url": judge.url}
    settings |= {"model.judge.cache": tmp_path / "judge.sqlite"}
    whole = fit(ranks, tmp_path / "whole", settings, config=RECIPE)
    kill_with_a_checkpoint(tmp_path / "broken", ranks, settings)
    broken = fit(ranks, tmp_path / "broken", settings, "--ckpt_path", "auto", config=RECIPE)
    assert len(rollouts(whole)) == length["iterations"] and rollouts(broken) == rollouts(whole)
    trained, expected = export(broken, tmp_path / "trained"), export(whole, tmp_path / "expected")
    assert differences(weights_of(trained), weights_of(expected)) == []
    assert len(differences(weights_of(trained), weights_of(begun))) > 40
    if length == LONG:
        assert judge.requests and len(set(scalars(whole, "update/grad_norm"))) == length["iterations"]

    words = ["--data", given / "quiz", "--out", tmp_path / "out", "--max_new_tokens", length["response"]]
    main(["evaluate", "--benchmark", "vstar", "--model", str(trained), "--mode", "text", *map(str, words)])
    replies = (tmp_path / "out" / "trained" / "text" / "vstar.jsonl").read_text().splitlines()
    assert len(replies) == QUESTIONS and all("reply" in json.loads(line) for line in replies)
    assert "direct_attributes" in (tmp_path / "out" / "scores.md").read_text()
