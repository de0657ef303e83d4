"""A run that is killed and resumed continues exactly as the unbroken run."""

import gzip
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ivgr.cli.main import main

CONFIG = Path(__file__).parents[2] / "configs" / "tiny.yaml"
SHORT = {
    "checkpoint_every": 1,
    "model.iterations": 4,
    "model.update.mini_batches": 2,
    "model.engine.sampling.max_new_tokens": 24,
    "data.prompts": 8,
    "data.train_count": 40,
    "data.val_count": 20,
    "data.val_queries": 8,
}


def start(root, *extra):
    options = [word for name, value in SHORT.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "ivgr", "fit", "--config", str(CONFIG), *options, *extra]
    return subprocess.Popen(
        [*command, "--trainer.default_root_dir", str(root)], stderr=subprocess.PIPE, text=True
    )


def gunzip(path):
    return gzip.decompress(path.read_bytes())


def finish(process):
    error = process.communicate(timeout=400)[1]
    return process.returncode, error


def wait_for(path, process):
    for _ in range(1200):
        if path.exists():
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    raise AssertionError(f"{path} never came")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of an unbroken run and of one killed after its second iteration."""
    whole, broken = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("broken")
    assert finish(start(whole))[0] == 0
    process = start(broken)
    wait_for(broken / "rollouts" / "000002.jsonl.gz", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (broken / "summary.json").exists()
    assert finish(start(broken, "--ckpt_path", "last"))[0] == 0
    return whole, broken


@pytest.mark.slow
def test_tokens_rewards_and_advantages_are_identical(runs):
    same_rollouts(*runs)


def same_rollouts(*runs):
    for iteration in range(1, 5):
        whole, broken = (gunzip(run / "rollouts" / f"{iteration:06d}.jsonl.gz") for run in runs)
        assert whole == broken and len(whole) > 100


@pytest.mark.slow
def test_weights_optimizer_and_archive_are_identical(runs):
    same_state(*runs)


def same_state(*runs):
    whole, broken = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in runs)
    assert whole["TinyWorld"] == broken["TinyWorld"]
    assert whole["ivgr"] == broken["ivgr"] and whole["ivgr"]["iteration"] == 4
    assert whole["global_step"] == broken["global_step"] == 8
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, broken["state_dict"][name]), name
    whole_state, broken_state = (run["optimizer_states"][0]["state"] for run in (whole, broken))
    for index, moments in whole_state.items():
        assert torch.equal(moments["exp_avg_sq"], broken_state[index]["exp_avg_sq"])


@pytest.fixture(scope="module")
def terminated(tmp_path_factory):
    """The folder of a run that gets SIGTERM in its second iteration, and what it says."""
    root = tmp_path_factory.mktemp("terminated")
    process = start(root, "--checkpoint_every", "100", "--checkpoint_keep", "2")
    wait_for(root / "rollouts" / "000001.jsonl.gz", process)
    process.send_signal(signal.SIGTERM)
    return root, *finish(process)


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint_that_resumes_exactly(runs, terminated):
    root, code, error = terminated
    assert code == 128 + signal.SIGTERM and error.count("\n") == 1
    done = int(re.fullmatch(r"ivgr: .*SIGTERM; stopped after iteration (\d); .*--ckpt_path last\n", error)[1])
    assert 1 <= done < 4 and not (root / "summary.json").exists()
    assert [path.name for path in (root / "checkpoints").glob("iteration*")] == [
        f"iteration-00000{done}.ckpt"
    ]
    extra = ("--checkpoint_every", "4", "--checkpoint_keep", "2")  # updates: saves after 2 and 4 iterations
    assert finish(start(root, *extra, "--ckpt_path", "auto"))[0] == 0
    same_rollouts(runs[0], root)
    same_state(runs[0], root)
    kept = sorted(path.name for path in (root / "checkpoints").iterdir())
    before = {"iteration-000002.ckpt" if done < 3 else "iteration-000003.ckpt"}
    assert set(kept) == before | {"iteration-000004.ckpt", "last.ckpt", "best.ckpt"}


@pytest.mark.slow
def test_the_best_is_kept_and_resumes_exactly(runs, tmp_path):
    """Validation after every second iteration; the first sets the record, an equal one does not."""
    extra = ("--trainer.val_check_interval", "2", "--checkpoint_best", "val/textual/format")
    assert finish(start(tmp_path, *extra))[0] == 0
    same_rollouts(runs[0], tmp_path)
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["ivgr"]["iteration"] == 2
    assert finish(start(tmp_path, *extra, "--ckpt_path", "best"))[0] == 0
    same_rollouts(runs[0], tmp_path)
    same_state(runs[0], tmp_path)


@pytest.mark.slow
def test_checkpoints_hold_no_reference_weights(runs):
    checkpoint = torch.load(runs[0] / "checkpoints" / "last.ckpt", weights_only=True)
    stored = sum(tensor.numel() for tensor in checkpoint["state_dict"].values())
    assert stored < 2_000_000  # the tiny policy once, its tied head counted twice


@pytest.mark.slow
def test_a_finished_run_says_so(runs):
    code, error = finish(start(runs[0], "--ckpt_path", "last"))
    assert code == 2 and "raise model.iterations" in error


@pytest.mark.slow
def test_another_order_of_data_is_refused(runs):
    code, error = finish(start(runs[0], "--ckpt_path", "last", "--data.prompts", "12"))
    assert code == 2 and "data.prompts" in error and error.count("\n") == 1


def test_last_without_a_checkpoint_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "fit",
                "--config",
                str(CONFIG),
                "--ckpt_path",
                "last",
                "--trainer.default_root_dir",
                str(tmp_path),
            ]
        )
    assert stop.value.code == 2 and "no checkpoint" in capsys.readouterr().err
