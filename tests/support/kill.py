"""A command of `ivgr`, killed at the places where it writes, which are found by watching it once.

An operation is what changes a folder: a file that is opened for writing (all that is written to it until
it is closed is part of the operation), a rename, a new folder, a link, a removal, a commit of sqlite. Its
moments are those at which a process can die: before it; with the file begun, half written and closed;
after it. At two moments between which nothing has changed on the disk, it can die only once.
"""

import builtins
import importlib
import io
import os
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ivgr.cli.main import main
from support.contents import contents, differences
from support.warm import warm_context

EVENTS = "events.out.tfevents"
# Of os; each changes the path that is its last argument.
CALLS = ("rename", "replace", "mkdir", "remove", "unlink", "rmdir", "symlink", "link", "truncate")
AUDITED = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate")
# What writes files past Python: a function and which argument is the path.
NATIVE = (("safetensors.torch", "save_file", 1), ("transformers.modeling_utils", "safe_save_file", 1))
FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Moment:
    """The `turn`-th time (from 0) that the operation `name` comes to `when`: "before", "begun", "half"
    (in the `write`-th of the file's writes), "closed" or "after"."""

    name: str
    turn: int
    when: str
    write: int = 0

    def __str__(self) -> str:
        return f"{self.when} {self.name}" + (f" ({self.turn + 1})" if self.turn else "")


@dataclass
class Log:
    """What a watched run did: its moments in order; for each, what lay on the disk; and operations that
    the watch was not told of."""

    moments: list[Moment] = field(default_factory=list)
    states: list[tuple] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    @property
    def operations(self) -> list[tuple[str, int]]:
        return list(dict.fromkeys((moment.name, moment.turn) for moment in self.moments))

    def distinct(self) -> list[Moment]:
        """The first moment of every state of the disk, and every half-written file; of the lines of an
        event file that follow one another, which its thread writes one by one, the first."""
        chosen, before, written = [], None, None
        for moment, state in zip(self.moments, self.states, strict=True):
            lines = moment.name if EVENTS in moment.name else None
            if (moment.when == "half" or state != before) and not (lines and lines == written):
                chosen.append(moment)
                written = lines
            before = state
        return chosen


class Watch:
    """Takes note of what this process does to files under `root`, and kills it at the moment `victim`."""

    def __init__(self, root: Path, victim: Moment | None = None) -> None:
        self.root, self.victim, self.log = str(root), victim, Log()
        self.turns: Counter = Counter()
        self.over = False
        self.known = threading.local()

    def install(self) -> None:
        for name in CALLS:
            setattr(os, name, self._wrap_call(name, getattr(os, name)))
        self.open, self.os_open = io.open, os.open
        io.open = builtins.open = self._open
        os.open = self._os_open
        for module, name, index in NATIVE:
            owner = importlib.import_module(module)
            setattr(owner, name, self._wrap_native(getattr(owner, name), index))
        self.connect = sqlite3.connect
        sqlite3.connect = self._connect
        sys.addaudithook(self._audit)

    def inside(self, path: object, folder: int | None = None) -> str | None:
        """`path` relative to the root, without what differs from run to run; None if it is elsewhere."""
        if not isinstance(path, str | bytes | os.PathLike):
            return None
        start = os.getcwd() if folder is None or folder < 0 else os.readlink(f"/proc/self/fd/{folder}")
        whole = os.path.normpath(os.path.join(start, os.fsdecode(path)))
        if whole != self.root and not whole.startswith(f"{self.root}/"):
            return None
        return re.sub(rf"({EVENTS}).*|(tmp/)\w+$", r"\1\2*", os.path.relpath(whole, self.root))

    def reach(self, name: str, turn: int, when: str, write: int = 0) -> None:
        """Notes a moment; it may be the last."""
        moment = Moment(name, turn, when, write)
        if moment == self.victim:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.victim is None:
            self.log.moments.append(moment)
            self.log.states.append(self._look())

    def begin(self, name: str) -> int:
        turn = self.turns[name]
        self.turns[name] += 1
        self.reach(name, turn, "before")
        return turn

    def _look(self) -> tuple:
        """What lies under the root: names, sizes and times, and where links point; event files apart."""
        found = []
        for folder, folders, files in os.walk(self.root):
            found.append(folder)
            for name in files + [name for name in folders if os.path.islink(os.path.join(folder, name))]:
                path = os.path.join(folder, name)
                with suppress(FileNotFoundError):  # another thread's doing
                    stat = os.lstat(path)
                    target = os.readlink(path) if os.path.islink(path) else ""
                    if EVENTS not in name:
                        found.append((path, stat.st_size, stat.st_mtime_ns, stat.st_ino, target))
        return tuple(sorted(map(str, found)))

    def _audit(self, event: str, arguments: tuple) -> None:
        """Whatever changes a file here must have passed one of the wrappers."""
        if event not in AUDITED or self.over or getattr(self.known, "now", False):
            return
        if event == "open" and not (arguments[2] or 0) & FOR_WRITING:
            return
        paths = arguments[:1] if event == "open" else arguments[:2]
        if any(self.inside(path) for path in paths):
            self.log.unseen.append(f"{event} {arguments}")

    def _telling(self, call: Callable, *arguments, **options):
        before = getattr(self.known, "now", False)
        self.known.now = True
        try:
            return call(*arguments, **options)
        finally:
            self.known.now = before

    def _wrap_call(self, name: str, call: Callable) -> Callable:
        def wrapped(*arguments, dir_fd=None, **options):
            path = arguments[1] if name in ("rename", "replace", "symlink", "link") else arguments[0]
            where = self.inside(path, dir_fd)
            if dir_fd is not None:
                options["dir_fd"] = dir_fd
            if where is None:
                return self._telling(call, *arguments, **options)
            label = f"{name} {where}"
            turn = self.begin(label)
            try:
                return self._telling(call, *arguments, **options)
            finally:
                self.reach(label, turn, "after")

        return wrapped

    def _open(self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *rest):
        where = None if set(mode) <= set("rbt") else self.inside(file)
        if where is None:
            return self.open(file, mode, buffering, encoding, errors, newline, *rest)
        label = f"write {where}"
        turn = self.begin(label)
        raw = self._telling(WatchedFile, self, label, turn, file, mode.replace("b", "").replace("t", ""))
        self.reach(label, turn, "begun")
        buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    def _os_open(self, path, flags, *rest, **options):
        where = self.inside(path, options.get("dir_fd")) if flags & FOR_WRITING else None
        if where is None:
            return self._telling(self.os_open, path, flags, *rest, **options)
        label = f"open {where}"
        turn = self.begin(label)
        handle = self._telling(self.os_open, path, flags, *rest, **options)
        self.reach(label, turn, "after")
        return handle

    def _wrap_native(self, call: Callable, index: int) -> Callable:
        def wrapped(*arguments, **options):
            path = options.get("filename", options.get("path")) or arguments[index]
            where = self.inside(path)
            if where is None:
                return call(*arguments, **options)
            label = f"write {where}"
            turn = self.begin(label)
            found = self._telling(call, *arguments, **options)
            if Moment(label, turn, "half") == self.victim:
                self._telling(os.truncate, path, os.path.getsize(path) // 2)
            self.reach(label, turn, "half")
            self.reach(label, turn, "closed")
            return found

        return wrapped

    def _connect(self, database, *arguments, **options):
        where = self.inside(database)
        if where is None:
            return self.connect(database, *arguments, **options)
        label = f"connect {where}"
        turn = self.begin(label)
        connection = self._telling(self.connect, database, *arguments, factory=WatchedConnection, **options)
        connection.watch, connection.name = self, f"commit {where}"
        self.reach(label, turn, "after")
        return connection


class WatchedFile(io.FileIO):
    """A file whose writes are counted, one of which may be the process's last, half done."""

    def __init__(self, watch: Watch, label: str, turn: int, path: object, mode: str) -> None:
        super().__init__(path, mode)
        self.watch, self.label, self.turn, self.writes = watch, label, turn, 0

    def write(self, data) -> int:
        moment = Moment(self.label, self.turn, "half", self.writes)
        if moment == self.watch.victim:
            super().write(memoryview(data).cast("B")[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        self.writes += 1
        return super().write(data)

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        if self.writes:
            self.watch.reach(self.label, self.turn, "half", (self.writes - 1) // 2)
        self.watch.reach(self.label, self.turn, "closed")


class WatchedConnection(sqlite3.Connection):
    """One whose commits are operations; a statement outside of a transaction is a commit of its own."""

    watch, name = None, ""

    def commit(self) -> None:
        self._operation(super().commit)

    def execute(self, statement: str, *rest):
        alone = self.isolation_level is None and not statement.startswith(("SELECT", "PRAGMA"))
        if self.watch is None or not alone:
            return super().execute(statement, *rest)
        return self._operation(super().execute, statement, *rest)

    def _operation(self, call: Callable, *arguments):
        turn = self.watch.begin(self.name)
        found = self.watch._telling(call, *arguments)
        self.watch.reach(self.name, turn, "after")
        return found


@dataclass(frozen=True)
class Subject:
    """A command that writes into `root` alone.

    prepare is called in its process first, to make it small; ends are the exit codes of a whole run,
    over is what a run says (exit code 2) that finds itself whole already.
    """

    root: Path
    words: list[str]
    prepare: Callable[[], None] | None = None
    ends: tuple[int, ...] = (0,)
    over: str = ""

    def run(self, victim: Moment | None = None, watched: bool = False) -> tuple[int, str, Log | None]:
        """Exit code, what it said, and what it did if it was `watched`."""
        context = warm_context()
        ours, theirs = context.Pipe(duplex=False)
        said = self.root.with_name(f"{self.root.name}.said")
        arguments = (self, said, victim, theirs if watched else None)
        process = context.Process(target=_work, args=arguments)
        process.start()
        theirs.close()
        log = None
        if watched:
            try:
                log = ours.recv()
            except EOFError:
                log = None
        process.join(200)
        process.kill()
        return process.exitcode, said.read_text(errors="replace"), log

    def clear(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)

    def finish(self) -> None:
        """The same command again, to its end."""
        code, said, _ = self.run()
        whole = code in self.ends or (code == 2 and self.over and self.over in said)
        assert whole, f"exit code {code}: {said[-2000:]}"


def _work(subject: Subject, said: Path, victim: Moment | None, pipe) -> None:
    handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    torch.set_num_threads(1)
    os.chdir(subject.root)
    os.environ["TMPDIR"] = tempfile.tempdir = str(subject.root / "tmp")
    os.makedirs("tmp", exist_ok=True)
    if subject.prepare:
        subject.prepare()
    watch = Watch(subject.root, victim)
    if victim or pipe:
        watch.install()
    code = 0
    try:
        main(subject.words)
    except SystemExit as stop:
        code = stop.code or 0
    if pipe:
        watch.over = True
        pipe.send(watch.log)
        pipe.close()
    sys.stdout.flush()
    os._exit(code)  # what atexit would do, a killed process does not either


@dataclass
class Trial:
    """A subject's unbroken run, and the moments at which it can be killed."""

    subject: Subject

    def __post_init__(self) -> None:
        self.subject.clear()
        code, said, self.log = self.subject.run(watched=True)
        assert code in self.subject.ends and self.log is not None, said[-2000:]
        assert not self.log.unseen, f"operations past the watch: {self.log.unseen}"
        self.whole = contents(self.subject.root)
        self.unknown = self._written_unseen()

    def _written_unseen(self) -> list[str]:
        """Files that no operation has made."""
        made = {name.partition(" ")[2] for name, _ in self.log.operations}
        files = [path for path in self.subject.root.rglob("*") if not path.is_dir()]
        names = {re.sub(rf"({EVENTS}).*", r"\1*", str(path.relative_to(self.subject.root))) for path in files}
        folders = {name for name in made if name.startswith("replace ") or name.startswith("rename ")}
        return sorted(names - made - folders)

    def kill_at(self, moment: Moment) -> list[str]:
        """How what the same command makes of the killed run's folder differs from the unbroken run's."""
        self.subject.clear()
        code, said, _ = self.subject.run(victim=moment)
        if code != -signal.SIGKILL:
            return [f"was not killed, exit code {code}: {said[-500:]}"]
        try:
            self.subject.finish()
        except AssertionError as error:
            return [str(error)]
        return differences(self.whole, contents(self.subject.root))

    def kill_at_all(self, moments: Sequence[Moment]) -> dict[str, list[str]]:
        found = {str(moment): self.kill_at(moment) for moment in moments}
        return {moment: different for moment, different in found.items() if different}
