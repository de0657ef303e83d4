"""Work that may be interrupted: finished rows on disk, to go on from, and the shards made of
them. Beside NAME.jsonl lies NAME.json, the settings that the rows were computed with."""

import json
from pathlib import Path

from ivgr.core.atomic_files import write_atomically, write_json
from ivgr.core.errors import UserError
from ivgr.core.readers import read_json, read_json_lines


class ResumableJsonl:
    """The rows of `folder`/NAME.jsonl, one JSON object a line, in the order of the work.

    `rows` holds those of an earlier, interrupted call; a line that was cut off is left out.
    UserError if they were computed with other settings, or if `folder` holds shards of
    another origin.
    """

    def __init__(self, folder: Path, name: str, settings: dict) -> None:
        self.path = folder / f"{name}.jsonl"
        marker = folder / f"{name}.json"
        if not marker.exists() and any(folder.glob("*.tar")):
            raise UserError(f"{folder}: holds other shards already; choose another folder")
        mend = "remove it to begin anew, or choose another folder"
        self.rows = read_json_lines(self.path, mend, whole=True) if self.path.exists() else []
        if self.rows:
            self._check(read_json(marker, mend, dict), json.loads(json.dumps(settings)), marker)
        write_json(marker, settings)
        self.keep(len(self.rows))

    def _check(self, saved: dict, settings: dict, marker: Path) -> None:
        for name, value in settings.items():
            if saved.get(name) != value:
                raise UserError(
                    f"{marker}: begun with {name} {saved.get(name)!r}, now it is {value!r}; "
                    "give the same settings or choose another folder"
                )

    def keep(self, count: int) -> None:
        """Forgets all but the first `count` rows."""
        self.rows = self.rows[:count]
        write_atomically(self.path, _lines(self.rows))

    def append(self, rows: list[dict]) -> None:
        self.rows += rows
        with self.path.open("ab") as file:
            file.write(_lines(rows))


def _lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
