"""Equality as mathematics, by `math-verify`, in a process that is killed at a limit: what sympy would
evaluate for hours (towers of powers, factorials, binomials) or without end is then not equal.

In: two texts. Out: whether they are equal, within `CALL` seconds whatever they hold. Where the
processes come from: `math_worker.py`.
"""

import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from ivgr.core.errors import UserError
from ivgr.rewards.math_worker import Lines, write_all

CALL = 5.0  # seconds that a call may take, the start of a worker included
SLACK = 1.0  # seconds of these that are kept back for what is not evaluation
LEAST = 0.5  # seconds of the rest that the start of a worker leaves for the evaluation
START = 60.0  # seconds after which a worker that is not ready never will be
KEPT = 4  # idle workers
REMEMBERED = 1 << 12  # pairs whose outcome is kept


def math_match(answer: str, gold: str) -> bool:
    """Equal to the letter, or as mathematics by `math-verify`; False within 5 s for what cannot be
    evaluated in that time. UserError if no worker can be started.

    Safe to call from threads, after a fork, from a notebook and from a script without a main guard.
    """
    return bool(compare_math(answer, gold))


def compare_math(answer: str, gold: str) -> bool | None:
    """Compares as `math_match` does; None if the evaluation was given up."""
    if answer.strip() == gold.strip() != "":
        return True
    try:
        return _evaluate(answer, gold)
    except _StillStarting:
        return None


def start() -> None:
    """Starts a worker, if there is none, for calls that will come; does not wait for it."""
    _pool.put(_pool.take())


class _StillStarting(Exception):
    """A worker that was not ready in time for this call, but may be for the next."""


@functools.lru_cache(REMEMBERED)
def _evaluate(answer: str, gold: str) -> bool | None:
    """Evaluates on one worker and puts it back if it is sound; replaces one that died while idle."""
    while True:
        worker = _pool.take()
        try:
            found = worker.ask(answer, gold)
        except BrokenPipeError:
            worker.close()
            continue
        except _StillStarting:
            _pool.put(worker)
            raise
        except BaseException:
            worker.close()
            raise
        _pool.put(worker)
        return found


class _Worker:
    """A `math_worker.py` process, started when it is made and ready some time later."""

    def __init__(self) -> None:
        self.born = time.monotonic()
        self.ready = False
        self.sound = True
        script = Path(__file__).with_name("math_worker.py")
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(script), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self.process.stdin and self.process.stdout, "both are pipes"
        self.stdin = self.process.stdin
        self.stdout = self.process.stdout
        self.lines = Lines(self.stdout.fileno())

    def ask(self, answer: str, gold: str) -> bool | None:
        """None if it was given up. BrokenPipeError if the process was dead before."""
        end = time.monotonic() + CALL - SLACK
        self._await_start(end - LEAST)
        seconds = max(end - time.monotonic(), LEAST)
        line = json.dumps([answer, gold, seconds]).encode() + b"\n"
        write_all(self.stdin.fileno(), line)
        reply = self.lines.read(seconds + SLACK / 2)
        self.sound = bool(reply)
        return json.loads(reply) if reply else None

    def _await_start(self, end: float) -> None:
        """_StillStarting if it is not ready at `end`; UserError, with its reason, if it never will be."""
        if self.ready:
            return
        line = self.lines.read(max(end - time.monotonic(), 0))
        self.ready = line == b"ready\n"
        if line is None and time.monotonic() - self.born < START:
            raise _StillStarting
        if not self.ready:
            reason = line.decode(errors="replace").strip() if line else "it does not start"
            raise UserError(f"mathematics: the process that evaluates it: {reason}; reinstall math-verify")

    def close(self) -> None:
        """Ends the process and the one that it forked: its session holds both."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.stdin.close()
        self.stdout.close()
        self.process.wait()


class _Pool:
    """Idle workers, for as many calls at once as there are."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.idle = []

    def take(self) -> _Worker:
        with self.lock:
            if self.idle:
                return self.idle.pop()
        return _Worker()

    def put(self, worker: _Worker) -> None:
        with self.lock:
            if worker.sound and len(self.idle) < KEPT:
                self.idle.append(worker)
                return
        worker.close()

    def close(self) -> None:
        with self.lock:
            workers, self.idle = self.idle, []
        for worker in workers:
            worker.close()

    def leave(self) -> None:
        """Forgets the workers in a forked child: they belong to the parent."""
        for worker in self.idle:
            worker.process.stdin.close()
            worker.process.stdout.close()
            worker.process.returncode = 0  # no child of this process: nothing to wait for
        self.__init__()


_pool = _Pool()
atexit.register(_pool.close)
os.register_at_fork(after_in_child=_pool.leave)
