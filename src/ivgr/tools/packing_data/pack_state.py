"""What a pack has done so far: a small database beside the shards, so that a pack killed at any
moment goes on where its last whole shard ends.

A shard's rows, ids and rejections are committed together after the shard has its name; what
a killed pack did beyond that is done again, byte for byte.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from ivgr.core.errors import UserError
from ivgr.data.shard_index import ShardSize

NAME = "pack.sqlite"
_TABLES = (
    "pack (setting TEXT, finished INTEGER)",
    "shards (number INTEGER PRIMARY KEY, rows INTEGER, size TEXT)",
    "ids (id BLOB PRIMARY KEY, shard INTEGER) WITHOUT ROWID",
    "rejected (shard INTEGER, position TEXT, id TEXT, reason TEXT)",
    "notes (shard INTEGER, position TEXT, note TEXT)",
)


class PackState:
    """The journal in `folder`; UserError if it is of another setting (JSON-able) than `setting`."""

    def __init__(self, folder: Path, setting: dict) -> None:
        self.path = folder / NAME
        self.db = sqlite3.connect(self.path, timeout=1)
        try:
            self._open(setting)
        except UserError:
            self.db.close()
            raise
        except sqlite3.OperationalError as error:
            raise UserError(f"{self.path}: {error}; is another pack writing into this folder?") from error
        except (sqlite3.DatabaseError, AttributeError, RecursionError, ValueError) as error:
            raise UserError(f"{self.path}: no journal of a pack ({error}); pass --overwrite") from error

    def _open(self, setting: dict) -> None:
        self.db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self.db.execute("BEGIN EXCLUSIVE")
        for table in _TABLES:
            self.db.execute(f"CREATE TABLE IF NOT EXISTS {table}")
        text = json.dumps(setting, sort_keys=True)
        known = self.db.execute("SELECT setting FROM pack").fetchone()
        if known is None:
            self.db.execute("INSERT INTO pack VALUES (?, 0)", (text,))
        elif known[0] != text:
            old = json.loads(known[0])
            other = next(name for name in setting if old.get(name) != setting[name])
            raise UserError(
                f"{self.path.parent}: holds a pack whose {other} was {_brief(old.get(other))}, now "
                f"{_brief(setting[other])}; choose another folder or pass --overwrite"
            )
        self.db.commit()

    @property
    def shards(self) -> list[ShardSize]:
        sizes = self.db.execute("SELECT size FROM shards ORDER BY number")
        return [ShardSize(**json.loads(size)) for (size,) in sizes]

    @property
    def rows(self) -> int:
        """Rows of the source that went into the shards so far."""
        return self.db.execute("SELECT coalesce(max(rows), 0) FROM shards").fetchone()[0]

    @property
    def finished(self) -> int:
        """Rows of the whole source, 0 while it is not packed to its end."""
        return self.db.execute("SELECT finished FROM pack").fetchone()[0]

    def forget_from(self, number: int) -> None:
        """Takes back shard `number`, all after it and what was rejected there."""
        self.db.execute("DELETE FROM shards WHERE number >= ?", (number,))
        for table in ("ids", "rejected", "notes"):
            self.db.execute(f"DELETE FROM {table} WHERE shard >= ?", (number,))
        self.db.execute("UPDATE pack SET finished = 0")
        self.db.commit()

    def is_new(self, id: str, shard: int) -> bool:
        """Whether `id` was not there before; from now on it is."""
        digest = hashlib.sha256(id.encode()).digest()[:16]
        return self.db.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", (digest, shard)).rowcount == 1

    def reject(self, shard: int, position: str, id: str, reason: str) -> None:
        self.db.execute(
            "INSERT INTO rejected VALUES (?, ?, ?, ?)", (shard, position, *map(_plain, (id, reason)))
        )

    def note(self, shard: int, position: str, note: str) -> None:
        self.db.execute("INSERT INTO notes VALUES (?, ?, ?)", (shard, position, note))

    def close_shard(self, number: int, rows: int, size: ShardSize) -> None:
        self.db.execute("INSERT INTO shards VALUES (?, ?, ?)", (number, rows, json.dumps(vars(size))))
        self.db.commit()

    def finish(self, rows: int) -> None:
        self.db.execute("UPDATE pack SET finished = ?", (rows,))
        self.db.commit()

    def rejected(self) -> Iterator[dict[str, str]]:
        """Position, id and reason of each rejected row, in order."""
        for position, id, reason in self.db.execute(
            "SELECT position, id, reason FROM rejected ORDER BY rowid"
        ):
            yield {"row": position, "id": id, "reason": reason}

    def notes(self) -> dict[str, int]:
        """Returns how often each change was made."""
        return dict(self.db.execute("SELECT note, count(*) FROM notes GROUP BY note ORDER BY note"))

    def close(self) -> None:
        """Closes the database; what is not committed is dropped."""
        self.db.close()


def _plain(text: str) -> str:
    """Half a surrogate pair written out, since no database takes it."""
    return text.encode("utf-8", "backslashreplace").decode()


def _brief(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
