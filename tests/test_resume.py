"""A run that is killed and resumed continues exactly as the unbroken run."""

import gzip
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

CONFIG = Path(__file__).parents[1] / "configs" / "tiny.yaml"
SHORT = {
    "checkpoint_every": 1,
    "model.iterations": 4,
    "model.updates": 2,
    "model.engine.max_new_tokens": 24,
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
    error = process.communicate(timeout=200)[1]
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


def test_tokens_rewards_and_advantages_are_identical(runs):
    for iteration in range(1, 5):
        whole, broken = (gunzip(run / "rollouts" / f"{iteration:06d}.jsonl.gz") for run in runs)
        assert whole == broken and len(whole) > 100


def test_weights_optimizer_and_archive_are_identical(runs):
    whole, broken = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in runs)
    assert whole["ivgr"] == broken["ivgr"] and whole["ivgr"]["iteration"] == 4
    assert whole["global_step"] == broken["global_step"] == 8
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, broken["state_dict"][name]), name
    whole_state, broken_state = (run["optimizer_states"][0]["state"] for run in (whole, broken))
    for index, moments in whole_state.items():
        assert torch.equal(moments["exp_avg_sq"], broken_state[index]["exp_avg_sq"])


def test_checkpoints_hold_no_reference_weights(runs):
    checkpoint = torch.load(runs[0] / "checkpoints" / "last.ckpt", weights_only=True)
    stored = sum(tensor.numel() for tensor in checkpoint["state_dict"].values())
    assert stored < 2_000_000  # the tiny policy once, its tied head counted twice


def test_a_finished_run_says_so(runs):
    code, error = finish(start(runs[0], "--ckpt_path", "last"))
    assert code == 2 and "raise model.iterations" in error


def test_another_order_of_data_is_refused(runs):
    code, error = finish(start(runs[0], "--ckpt_path", "last", "--data.prompts", "12"))
    assert code == 2 and "data.prompts" in error and error.count("\n") == 1


def test_last_without_a_checkpoint_is_an_error(tmp_path):
    code, error = finish(start(tmp_path, "--ckpt_path", "last"))
    assert code == 2 and "no checkpoint" in error
