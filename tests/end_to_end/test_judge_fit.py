"""Whole runs of `ivgr fit` whose judge is a server: one that loses replies, one that is down."""

import gzip
import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ivgr.cli.main import main
from ivgr.judge import CONSISTENCY_SCORES
from support.judge_server import JudgeServer, lossy

SETTINGS = {
    "model.iterations": 2,
    "model.update.mini_batches": 2,
    "model.engine.sampling.max_new_tokens": 60,
    "data.prompts": 12,
    "data.train_count": 60,
    "data.val_count": 20,
    "data.val_queries": 8,
    "checkpoint_every": 100,
}
JUDGE = {"model": "m", "cache": None, "pause": 0.01, "timeout": 5.0, "retries": 8, "patience": 10.0}


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def fit(root, server, *extra, command="fit", **judge):
    path = root / "judge.yaml"
    root.mkdir(exist_ok=True)
    arguments = JUDGE | {"base_url": server.url} | judge
    settings = {"class_path": "ivgr.judge.LLMJudge", "init_args": arguments}
    path.write_text(
        json.dumps({"model": {"class_path": "ivgr.trainer.rl_module.IVGR", "init_args": {"judge": settings}}})
    )
    options = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
    root_option = ["--trainer.default_root_dir", str(root)]
    main([command, "--config", "configs/tiny.yaml", "--config", str(path), *options, *root_option, *extra])


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def rollouts(root, iteration):
    lines = gzip.decompress((root / "rollouts" / f"{iteration:06d}.jsonl.gz").read_bytes()).splitlines()
    return [json.loads(line) for line in lines]


def checkpoint(root):
    return torch.load(root / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, request):
    """The folder of a run with a healthy judge."""
    with pytest.MonkeyPatch.context() as patch, JudgeServer() as server:
        patch.chdir(request.config.rootpath)
        patch.setenv("NO_PROXY", "127.0.0.1")
        root = tmp_path_factory.mktemp("unbroken")
        fit(root, server, "--checkpoint_every", "1", cache=str(root / "judge.sqlite"))
        scores = {
            row["terms"]["consistency"] for i in (1, 2) for row in rollouts(root, i) if row["reference"]
        }
        assert server.requests and len(scores) > 1 and scores <= set(CONSISTENCY_SCORES)
    return root


def test_a_third_of_the_replies_lost_changes_nothing_when_they_are_asked_again(tmp_path, unbroken):
    with JudgeServer(fault=lossy(0.3)) as server:
        fit(tmp_path, server)
    assert [rollouts(tmp_path, i) for i in (1, 2)] == [rollouts(unbroken, i) for i in (1, 2)]


@pytest.mark.slow
def test_without_another_attempt_the_lost_leave_their_groups(tmp_path):
    with JudgeServer(fault=lossy(0.3)) as server:
        fit(tmp_path, server, retries=0, missing_limit=1.0)
    rows = [row for i in (1, 2) for row in rollouts(tmp_path, i)]
    missing = [row for row in rows if row["reward"] is None]
    assert 0 < len(missing) < len(rows) / 2
    assert all(row["advantage"] == 0.0 for row in missing)
    assert all({"accuracy", "consistency"} - row["terms"].keys() for row in missing)
    for start in range(0, len(rows), 5):
        group = rows[start : start + 5]
        known = torch.tensor([row["reward"] for row in group if row["reward"] is not None])
        advantages = torch.tensor([row["advantage"] for row in group if row["reward"] is not None])
        if len(known) < 2:
            assert not advantages.any()
        else:
            expected = (known - known.mean()) / (known.std() + 1e-6)
            assert torch.allclose(advantages, expected, atol=1e-3)
    check_board(tmp_path, len(server.requests))


def check_board(root, requests: int) -> None:
    board = EventAccumulator(str(root))
    board.Reload()
    judged = ("missing_share", "requests", "retries", "cache_hits", "failures/reply", "failures/busy")
    names = {"zero_std/groups_without", "time/judge_wait", "time/reward"}
    names |= {f"reward_judge/{name}" for name in judged}
    assert names <= set(board.Tags()["scalars"])
    values = {name: [event.value for event in board.Scalars(name)] for name in names}
    assert 0 < sum(values["reward_judge/requests"]) <= requests and sum(values["reward_judge/retries"]) == 0
    assert 0 < sum(values["reward_judge/failures/reply"]) < sum(values["reward_judge/requests"])
    assert all(0 < share < 0.6 for share in values["reward_judge/missing_share"])


@pytest.mark.slow
def test_a_second_run_is_served_from_the_cache_without_one_request(tmp_path, unbroken):
    with JudgeServer() as server:
        fit(tmp_path, server, cache=str(unbroken / "judge.sqlite"))
    assert server.requests == []
    assert [rollouts(tmp_path, i) for i in (1, 2)] == [rollouts(unbroken, i) for i in (1, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("stopped_in", [0, 2], ids=["evaluation", "second iteration"])
def test_a_judge_that_falls_silent_stops_the_run_which_then_goes_on_exactly(
    tmp_path, unbroken, capsys, stopped_in
):
    with JudgeServer() as server:
        silent = SilentFrom(tmp_path, stopped_in)
        server.fault = silent
        with pytest.raises(SystemExit) as stop:
            fit(tmp_path, server, timeout=1.5, retries=0, patience=2.0, missing_limit=0.0)
    *notices, error = capsys.readouterr().err.splitlines()
    done = max(stopped_in - 1, 0)
    assert stop.value.code == 2 and all("waiting up to 2 s" in line for line in notices)
    assert (
        "no verdict on" in error and f"stopped after iteration {done}; go on with --ckpt_path last" in error
    )
    assert checkpoint(tmp_path)["ivgr"]["iteration"] == done
    with JudgeServer() as server:
        fit(tmp_path, server, "--ckpt_path", "last", "--checkpoint_every", "1")
    assert [rollouts(tmp_path, i) for i in (1, 2)] == [rollouts(unbroken, i) for i in (1, 2)]
    resumed, whole = checkpoint(tmp_path), checkpoint(unbroken)
    assert resumed["ivgr"] == whole["ivgr"] and resumed["global_step"] == whole["global_step"]
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name
    assert json.loads((tmp_path / "summary.json").read_text())["before"]


@pytest.mark.slow
def test_a_judge_that_is_down_at_the_end_loses_nothing(tmp_path, unbroken, capsys):
    done = tmp_path / "rollouts" / "000002.jsonl.gz"
    with JudgeServer(fault=lambda *_: "500" if done.exists() else None) as server:
        with pytest.raises(SystemExit):
            fit(tmp_path, server, retries=0, patience=0.3, missing_limit=0.0)
        assert "stopped after iteration 2; go on with --ckpt_path last" in capsys.readouterr().err
        assert not (tmp_path / "summary.json").exists()
        server.fault = lambda *_: None
        fit(tmp_path, server, "--ckpt_path", "last", command="validate")
        assert "val/textual/accuracy" in capsys.readouterr().out
        fit(tmp_path, server, "--ckpt_path", "last")
    assert checkpoint(tmp_path)["ivgr"] == checkpoint(unbroken)["ivgr"]
    found, expected = (json.loads((run / "summary.json").read_text()) for run in (tmp_path, unbroken))
    assert found | {"seconds": 0} == expected | {"seconds": 0}
    assert (tmp_path / "checkpoints" / "best.ckpt").exists()


class SilentFrom:
    """No reply to questions on reasoning of the given iteration (0: to any question)."""

    def __init__(self, root, iteration: int) -> None:
        self.record, self.iteration = root / "rollouts" / f"{iteration - 1:06d}.jsonl.gz", iteration

    def __call__(self, number: int, data: dict) -> str | None:
        if self.iteration == 0:
            return "silent"
        return "silent" if self.record.exists() and "reasoning" in data else None


def fit_without_judge(root, *options):
    words = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
    main([
        "fit", "--config", "configs/tiny.yaml", "--model.judge", "null",
        "--trainer.default_root_dir", str(root), *words, *options,
    ])  # fmt: skip


def test_a_run_whose_rewards_ask_a_judge_must_name_one(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        fit_without_judge(tmp_path)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "model.judge" in error and "model.rewards.consistency" in error and "ivgr.LLMJudge" in error


@pytest.mark.slow
def test_a_run_whose_rewards_ask_nobody_needs_no_judge(tmp_path, capsys):
    none = [f"--model.rewards.{name}.weight=0" for name in ("accuracy", "single_accuracy", "consistency")]
    fit_without_judge(tmp_path, *none, "--model.iterations", "1")
    rows = rollouts(tmp_path, 1)
    for row in rows:
        assert row["reward"] == row["terms"]["format"] + row["terms"].get("box", 0.0)
        assert (row["terms"]["accuracy"] in (0.0, 1.0) and not row["reference"]) or "consistency" not in row[
            "terms"
        ]
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert not [name for name in board.Tags()["scalars"] if name.startswith("reward_judge/")]
    after = json.loads((tmp_path / "summary.json").read_text())["after"]
    assert after["textual"].keys() == {"accuracy", "format", "place_accuracy", "length"}
