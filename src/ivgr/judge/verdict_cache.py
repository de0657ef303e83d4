"""Verdicts that outlive the run: a sqlite file keyed by the content of the question.

Safe for several processes at once, also on several nodes that share the file: its journal is one that
needs locks of the file alone, where a write-ahead log would need memory that all of them share. What
is stored is the verdict's JSON, which is parsed like a reply when it is read.
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ivgr.core.errors import UserError, say

JOURNAL = "truncate"
# Seconds: for the locks of others, and between two transactions, each of which waits for the disk.
PATIENCE, BETWEEN = 60.0, 1.0


class VerdictCache:
    """Verdicts by key.

    Args:
        path: The sqlite file, made on first use; null keeps nothing.

    Raises:
        UserError: There is something at `path` that is no such file.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = Path(path) if path else None
        self.connection: sqlite3.Connection | None = None
        self.unsaved: dict[str, str] = {}
        self.saved = time.monotonic()
        if self.path and self.path.exists():
            with self._open():
                pass

    def get(self, key: str) -> str | None:
        """The stored JSON; UserError if the file cannot be read."""
        if not self.path:
            return None
        if key in self.unsaved:
            return self.unsaved[key]
        with self._open() as connection:
            row = connection.execute("SELECT verdict FROM verdicts WHERE key = ?", (key,)).fetchone()
        return str(row[0]) if row else None

    def put(self, key: str, verdict: str) -> None:
        """Keeps `verdict` (JSON), and stores what was kept about once a second; the first one under a
        key stays."""
        if self.path:
            self.unsaved.setdefault(key, verdict)
            if time.monotonic() - self.saved >= BETWEEN:
                self.save()

    def save(self) -> None:
        """Stores what is kept; UserError if the file cannot be written."""
        rows, self.unsaved = list(self.unsaved.items()), {}
        if rows:
            with self._open() as connection, connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", rows)
        self.saved = time.monotonic()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            if self.connection is None:
                self.connection = self._connect()
            yield self.connection
        except (sqlite3.Error, OSError, ValueError) as error:
            raise UserError(
                f"judge cache {self.path}: cannot be used ({say(error)}); move it away or give another"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        assert self.path is not None, "without a path nothing is kept"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Used by one thread at a time, but not always by the same.
        connection = sqlite3.connect(
            self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False
        )
        connection.execute(f"PRAGMA journal_mode = {JOURNAL}")
        with connection:
            connection.execute("BEGIN IMMEDIATE")  # a lock that grows later can be refused at once
            connection.execute(
                "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL)"
            )
            connection.execute("SELECT key, verdict FROM verdicts LIMIT 0")
        return connection


def content_key(*parts: object) -> str:
    """SHA-256 of `parts` (plain data), independent of process and version."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
