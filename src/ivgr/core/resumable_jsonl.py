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
            saved = read_json(marker, mend, dict)
            refuse_other_settings(marker, saved, json.loads(json.dumps(settings)), "another folder")
        write_json(marker, settings)
        self.keep(len(self.rows))

    def keep(self, count: int) -> None:
        """Forgets all but the first `count` rows."""
        self.rows = self.rows[:count]
        write_atomically(self.path, _lines(self.rows))

    def append(self, rows: list[dict]) -> None:
        self.rows += rows
        with self.path.open("ab") as file:
            file.write(_lines(rows))


def refuse_other_settings(path: Path, saved: dict, settings: dict, instead: str) -> None:
    """UserError if work that `path` has `saved` the settings of was begun with others than `settings`."""
    for name, value in settings.items():
        if saved.get(name) != value:
            raise UserError(
                f"{path}: begun with {name} {saved.get(name)!r}, now it is {value!r}; "
                f"give the same settings or choose {instead}"
            )


def _lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
