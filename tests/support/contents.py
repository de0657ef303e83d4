"""What a run leaves in its folder, as plain values that can be compared: of times and dates nothing, of
event files the values, of archives the cells."""

import gzip
import json
import re
import sqlite3
from pathlib import Path

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

EVENTS = "events.out.tfevents"
# Seconds and what is computed from them.
TIMES = re.compile(r"(^|/)(seconds|minutes|time|date|rollout/tokens_per_s\w*)($|/)|^time/|perf/")
# The state of the source that a run was started from, which may be committed between two runs.
SOURCE = "commit"
# Beside a database; what they hold is read with it.
JOURNALS = (".sqlite-journal", ".sqlite-wal", ".sqlite-shm")


def contents(root: Path) -> dict[str, object]:
    """By path; of a folder's event files one entry, whose values are those last written for a step."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[f"{name} ->"] = str(path.readlink())
        elif path.is_dir():
            found[name] = "folder"
        elif EVENTS in path.name:
            own = found.setdefault(f"{path.parent.relative_to(root)}/events", {})
            own.update(_events(path))
        elif not path.name.endswith(JOURNALS):
            found[name] = _read(path)
    return found


def _events(path: Path) -> dict[str, object]:
    found = {}
    for record in RawEventFileLoader(str(path)).Load():
        event = Event.FromString(record)
        for value in event.summary.value:
            name = f"{value.tag} {event.step}"
            if value.HasField("simple_value"):
                found[name] = 0.0 if TIMES.search(value.tag) else value.simple_value
            else:
                found[name] = _summary(value)
    return found


def _summary(value) -> bytes | str:
    """Text, pictures (but for those of times), settings."""
    return value.SerializeToString()


def _read(path: Path) -> object:
    suffixes = path.suffixes
    if path.suffix in (".ckpt", ".pt"):
        return _timeless(torch.load(path, weights_only=True))
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text()))
    if suffixes[-2:] == [".jsonl", ".gz"]:
        return gzip.decompress(path.read_bytes())
    if path.suffix == ".sqlite":
        return _tables(path)
    if path.suffix == ".xlsx":
        return _cells(path)
    return path.read_bytes()


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        return {k: 0 if k == SOURCE or TIMES.search(str(k)) else _timeless(v) for k, v in value.items()}
    return [_timeless(one) for one in value] if isinstance(value, list | tuple) else value


def _tables(path: Path) -> dict[str, list]:
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: sorted(map(str, database.execute(f"SELECT * FROM {name}"))) for name in names}


def _cells(path: Path) -> list[tuple]:
    from openpyxl import load_workbook

    return [row for sheet in load_workbook(path) for row in sheet.iter_rows(values_only=True)]


def differences(one: object, other: object, where: str = "") -> list[str]:
    """Where the two differ, by name."""
    if isinstance(one, dict) and isinstance(other, dict):
        odd = [
            f"{where}/{key}: only in the {'first' if key in one else 'second'}"
            for key in one.keys() ^ other.keys()
        ]
        shared = [key for key in one if key in other]
        return odd + [line for key in shared for line in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{where}/{i}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [f"{where}: other numbers"]
    return [] if one == other else [f"{where}: {str(one)[:80]} and {str(other)[:80]}"]
