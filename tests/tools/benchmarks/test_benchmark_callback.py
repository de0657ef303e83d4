"""Benchmarks at validation: the figures of `ivgr evaluate`, on one process and on two."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ivgr.cli.main import main
from ivgr.tools.benchmarks.benchmark_callback import draw_rows
from support.command_line import fails
from support.launch import CONFIG, fit, scalars, write_world

MODES = ("text", "grounded", "tool")
ROWS = 12


@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 9))
def test_rows_are_drawn_once_each_by_the_seed(total, count, seed):
    drawn = draw_rows(total, count, seed)
    assert drawn == sorted(set(drawn)) == draw_rows(total, count, seed)
    assert len(drawn) == min(total, count) and set(drawn) <= set(range(total))
    assert draw_rows(total, None, seed) == list(range(total))


def test_every_row_may_be_drawn():
    assert {number for seed in range(60) for number in draw_rows(30, 5, seed)} == set(range(30))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    main(["synth", str(folder), "--split", "val", "--count", "40", "--seed", "5", "--tsv"])
    return folder


@pytest.fixture(scope="module")
def config(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "bench.yaml"
    settings = {"benchmark": ["vstar"], "data": str(data), "mode": list(MODES), "rows": ROWS, "every": 2}
    callback = {
        "class_path": "ivgr.tools.benchmarks.benchmark_callback.Benchmarks",
        "init_args": {**settings, "openly": True},
    }
    path.write_text(yaml.safe_dump({"trainer": {"callbacks": [callback], "val_check_interval": 1}}))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world")) | {
        "model.iterations": 3,
        "model.update.optimizer.lr": 0.0,
    }


@pytest.fixture(scope="module")
def expected(data, tmp_path_factory):
    """By mode, the share of right answers of the shipped policy, by `ivgr evaluate`."""
    out = tmp_path_factory.mktemp("out")
    options = ["--data", str(data), "--out", str(out), "--openly", "--max_new_tokens", "60"]
    main(["evaluate", "--benchmark", "vstar", "--mode", *MODES, *options])
    shares = {}
    for mode in MODES:
        rows = list(map(json.loads, (out / "tiny" / mode / "vstar.jsonl").read_text().splitlines()))
        drawn = [rows[number]["verdict"] for number in draw_rows(len(rows), ROWS, 0)]
        shares[mode] = sum(drawn) / ROWS
    return shares


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_policy_that_learns_nothing_keeps_the_figures_of_evaluate(world, config, expected, tmp_path, ranks):
    """At the first and the third of three validations; there are figures before training, too."""
    root = fit(ranks, tmp_path / "run", world, "--config", str(config))
    for mode in MODES:
        found = scalars(root, f"bench/vstar/{mode}/accuracy")
        assert found == [pytest.approx(expected[mode])] * 2
    assert len(scalars(root, "textual/held_out/accuracy_whole")) == 4 and 0 < expected["text"] < 1


@pytest.mark.parametrize(("change", "message"), [
    ({"benchmark": ["coco"]}, "must be among vstar"), ({"benchmark": []}, "name a benchmark"),
    ({"rows": 0}, "must be a whole number from 1"), ({"data": "/no/such"}, "/no/such: nothing there"),
    ({"benchmark": ["pope"]}, "of POPE"), ({"mode": ["loud"]}, "mode"),
])  # fmt: skip
def test_misuse_stops_before_training(config, tmp_path, capsys, change, message):
    settings = yaml.safe_load(config.read_text())
    settings["trainer"]["callbacks"][0]["init_args"] |= change
    path = tmp_path / "bench.yaml"
    path.write_text(yaml.safe_dump(settings))
    root = ["--trainer.default_root_dir", str(tmp_path / "run"), "--data.train_count", "80"]
    root += ["--model.iterations", "1"]
    words = ["fit", "--config", str(CONFIG), "--config", str(path), *root, "--data.val_count", "8"]
    assert message in fails(capsys, *words)
    assert not (tmp_path / "run" / "rollouts").exists()
