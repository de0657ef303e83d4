"""`python -m ivgr.tools.study.worker`: one run's training or examination, in a process of its own.

It ends with the process that started it: that one holds the other end of stdin.
"""

import fcntl
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

from ivgr.callbacks.checkpoints import LAST
from ivgr.callbacks.validation_summary import STATE_KEY
from ivgr.core.atomic_files import write_json
from ivgr.core.checkpoint_file import read_checkpoint
from ivgr.launch.config import compose_words
from ivgr.launch.error_lines import error_lines
from ivgr.launch.lightning_cli import run_lightning
from ivgr.tools.study.policy_report import ReportSettings, report_on
from ivgr.tools.study.study_runs import EXAMINED, POLICY, TRAINED
from ivgr.trainer.export import export


def train(folder: Path, iterations: int, words: list[str]) -> None:
    """`ivgr fit` from where it stands, then folder/policy, a HF directory; folder/trained.json
    comes last."""
    last = folder / "checkpoints" / LAST
    if not last.exists() or read_checkpoint(last)["ivgr"]["iteration"] < iterations:
        run_lightning(compose_words([*words, "--ckpt_path", "auto"]))
    shutil.rmtree(folder / POLICY, ignore_errors=True)
    export(last, folder / POLICY)
    seconds = read_checkpoint(last)["callbacks"][STATE_KEY]["seconds"]
    write_json(folder / TRAINED, {"iterations": iterations, "seconds": seconds})


def end_with_parent() -> None:
    """SIGTERM to this process, which training answers with a checkpoint, once stdin is closed."""

    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)  # past the buffer, whose lock would outlive the interpreter
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def work(task: dict) -> None:
    """The task that the study has written: {"do": "train" or "examine", "folder": …, …}."""
    folder = Path(task["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        # The process of an earlier call, which was killed, may still be saving its state.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if task["do"] == "train":
            train(folder, task["iterations"], task["words"])
        else:
            write_json(folder / EXAMINED, report_on(ReportSettings(**task["examination"])))


if __name__ == "__main__":
    end_with_parent()
    with error_lines():
        work(json.loads(sys.argv[1]))
