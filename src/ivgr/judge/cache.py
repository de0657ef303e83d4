"""Verdicts that outlive the run: a sqlite file keyed by the content of the question.

Safe for several processes at once (write-ahead log); what is stored is the verdict's JSON,
which is parsed like a reply when it is read.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ivgr.errors import UserError


class VerdictCache:
    """Verdicts by key.

    Args:
        path: The sqlite file, made on first use; null keeps nothing.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = path and Path(path)
        self.connection: sqlite3.Connection | None = None

    def get(self, key: str) -> str | None:
        """The stored JSON; UserError if the file cannot be read."""
        if not self.path:
            return None
        with self._open() as connection:
            row = connection.execute("SELECT verdict FROM verdicts WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def put(self, key: str, verdict: str) -> None:
        """Stores `verdict` (JSON) at once; the first one stored under a key stays."""
        if self.path:
            with self._open() as connection:
                connection.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", (key, verdict))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            if self.connection is None:
                self.connection = self._connect()
            yield self.connection
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"judge cache {self.path}: cannot be used ({error}); move it away or give another"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Used by one thread at a time, but not always by the same.
        connection = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL)"
        )
        return connection


def content_key(*parts: object) -> str:
    """SHA-256 of `parts` (plain data), independent of process and version."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
