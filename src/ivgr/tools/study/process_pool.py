"""Several tasks of a study at a time, each in a process of its own."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from ivgr.core.errors import UserError


@dataclass(frozen=True)
class Task:
    """The task of one `ivgr.tools.study.worker`; its process writes to `log`."""

    name: str
    content: dict
    log: Path


class Pool:
    """Runs tasks, `parallel` at a time with `threads` threads each.

    If one fails, or this process is interrupted, the others are told to end, which leaves a run a
    checkpoint; the tasks not begun are dropped.
    """

    def __init__(self, parallel: int, threads: int) -> None:
        self.parallel = parallel
        self.threads = threads
        self.running: set[subprocess.Popen] = set()
        self.lock = threading.Lock()
        self.over = False

    def run(self, tasks: Sequence[Task], done: Callable[[Task], None]) -> None:
        """Tells `done` of each task that is finished. UserError names the one that failed."""
        with ThreadPoolExecutor(self.parallel) as executor:
            futures = {executor.submit(self._run, task): task for task in tasks}
            try:
                for future in as_completed(futures):
                    future.result()
                    done(futures[future])
            except BaseException:
                self._stop()
                raise

    def _run(self, task: Task) -> None:
        task.log.parent.mkdir(parents=True, exist_ok=True)
        with task.log.open("ab") as log:
            with self.lock:
                if self.over:
                    return
                process = self._start(task, log)
                self.running.add(process)
            code = process.wait()
            cast(IO, process.stdin).close()
        self.running.discard(process)
        if code and not self.over:
            raise UserError(f"study: {task.name}: {last_line(task.log)} ({task.log})")

    def _start(self, task: Task, log: IO[bytes]) -> subprocess.Popen:
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        return subprocess.Popen(
            [sys.executable, "-m", "ivgr.tools.study.worker", json.dumps(task.content)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | threads,
            start_new_session=True,
        )

    def _stop(self) -> None:
        with self.lock:
            self.over = True
        for process in list(self.running):
            process.terminate()


def last_line(log: Path) -> str:
    """Returns the last line that a process wrote, without what `ivgr` puts before an error."""
    lines = log.read_text(errors="replace").strip().splitlines() or ["said nothing"]
    return lines[-1].removeprefix("ivgr: error: ")
