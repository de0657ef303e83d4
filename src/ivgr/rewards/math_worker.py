"""The process that evaluates mathematics for `mathematics.py`. A script of its own that imports nothing
of ivgr, so that it starts in half a second and needs nothing of the program that started it.

In (stdin): a line of JSON per pair, [answer, gold, seconds]. Out (stdout): `ready`, or why it is not;
then a line per pair: true, false, or null for what was given up (its time or its memory ran out).

The process that reads stdin evaluates nothing. It forks one that does, kills it at the limit, and
forks the next in milliseconds, since all is imported already. Both end with the program.
"""

import json
import logging
import os
import resource
import select
import signal
import sys
import time
from typing import Any

MEMORY = 1 << 30  # bytes of address space of the process that evaluates
CPU = 3  # seconds of a processor for one pair; the limit in seconds of a clock comes with the pair
RENEWED = 2000  # pairs after which it is replaced, so that what sympy remembers stays bounded
WATCH = 1.0  # seconds between two looks at whether the program still lives


class Lines:
    """Lines of a file descriptor, read with a time limit."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.rest = b""
        self.poll = select.poll()
        self.poll.register(descriptor, select.POLLIN)

    def read(self, seconds: float | None = None) -> bytes | None:
        """The next line; b"" at the end of the file, None if it has not come in `seconds`."""
        end = None if seconds is None else time.monotonic() + seconds
        while b"\n" not in self.rest:
            left = None if end is None else max(1000 * (end - time.monotonic()), 0)
            if not self.poll.poll(left):
                return None
            data = os.read(self.descriptor, 1 << 16)
            if not data:
                return b""
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\n")
        return line + b"\n"


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


class OutOfMemory(logging.Handler):
    """Notices a `MemoryError` that math-verify takes for an answer it cannot read."""

    happened = False

    def emit(self, record: logging.LogRecord) -> None:
        self.happened |= bool(record.exc_info) and isinstance(record.exc_info[1], MemoryError)


def equal(answer: str, gold: str, notice: OutOfMemory) -> bool | None:
    """Whether the two are equal as mathematics; None if there was too little memory to say."""
    from math_verify import parse, verify

    notice.happened = False
    try:
        without_end: Any = None  # declared int; None sets no alarm
        wanted, given = (parse(f"${text}$", parsing_timeout=without_end) for text in (gold, answer))
        found = bool(wanted and given and verify(wanted, given, timeout_seconds=without_end))
    except MemoryError:
        return None
    return None if notice.happened else found


def evaluate(requests: int, replies: int) -> None:
    """The evaluating process: a reply per request, until the requests end."""
    notice, lines = OutOfMemory(), Lines(requests)
    log = logging.getLogger("math_verify")
    log.handlers, log.propagate = [notice], False
    log.setLevel(logging.DEBUG)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while line := lines.read():
        answer, gold, _ = json.loads(line)
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + CPU
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        write_all(replies, json.dumps(equal(answer, gold, notice)).encode() + b"\n")


class Evaluator:
    """The forked process and the pipes to it."""

    def __init__(self) -> None:
        requests, self.requests = os.pipe()
        self.replies, replies = os.pipe()
        self.asked = 0
        self.process = os.fork()
        if not self.process:
            try:
                for descriptor in (0, 1, self.requests, self.replies):
                    os.close(descriptor)
                evaluate(requests, replies)
            finally:
                os._exit(0)
        os.close(requests)
        os.close(replies)
        self.lines = Lines(self.replies)

    def ask(self, line: bytes, program: int) -> bytes:
        """The reply to a request; b"" if its time ran out, the process died, or `program` did."""
        self.asked += 1
        write_all(self.requests, line)
        end = time.monotonic() + json.loads(line)[2]
        while (left := end - time.monotonic()) > 0 and os.getppid() == program:
            reply = self.lines.read(min(left, WATCH))
            if reply is not None:
                return reply
        return b""

    def end(self) -> None:
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self.requests)
        os.close(self.replies)


def serve(program: int) -> None:
    """Answers until stdin ends, or `program`, the process that started this one, is gone."""
    equal("0.5", r"\frac{1}{2}", OutOfMemory())  # the parser's tables, which every fork then has
    lines, evaluator = Lines(0), Evaluator()
    write_all(1, b"ready\n")
    try:
        while os.getppid() == program and (line := lines.read(WATCH)) != b"":
            if line is None:
                continue
            reply = evaluator.ask(line, program)
            if not reply or evaluator.asked >= RENEWED:
                evaluator.end()
                evaluator = Evaluator()
            write_all(1, reply or b"null\n")
    finally:
        evaluator.end()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        import math_verify  # noqa: F401
    except Exception as error:
        write_all(1, f"{type(error).__name__}: {error}".replace("\n", " ").encode() + b"\n")
        return
    serve(int(sys.argv[1]))


if __name__ == "__main__":
    main()
