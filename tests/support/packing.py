"""`ivgr pack` as the tests call it, and what it leaves behind."""

import json
from pathlib import Path

from ivgr.cli.main import main
from ivgr.core.sample import read_sample
from ivgr.data.shards import find_shards, read_shards
from ivgr.tools.packing_data.admit import admit_row
from ivgr.tools.packing_data.source_rows import Row


def pack(source, target, *options) -> int:
    """The exit code."""
    try:
        main(["pack", str(source), str(target), *map(str, options)])
    except SystemExit as stop:
        return stop.code
    return 0


def samples(folder) -> list:
    return [read_sample(entry) for entry in read_shards(find_shards(str(folder)))]


def rejected(folder) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "rejected.jsonl").read_text().splitlines()]


def contents(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.name != "pack.sqlite"}


def admit(folder, **row):
    return admit_row(Row("rows:1", row), folder)
