"""sizes.json, beside packed shards: what each of them holds, so that nobody has to read 500 GB
to count it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ivgr.files import write_atomically

NAME = "sizes.json"


@dataclass(frozen=True)
class ShardSize:
    """samples = paired + single; bytes and sha256 of the tar."""

    samples: int
    paired: int
    single: int
    bytes: int
    sha256: str


def write_sizes(folder: Path, sizes: dict[str, ShardSize]) -> None:
    """`sizes` by file name, sorted; the file appears whole or not at all."""
    shards = {name: asdict(sizes[name]) for name in sorted(sizes)}
    write_atomically(folder / NAME, json.dumps({"shards": shards}, indent=1).encode())


def read_sizes(folder: Path) -> dict[str, ShardSize]:
    """The sizes that lie in `folder`, {} without a sizes.json."""
    path = folder / NAME
    if not path.exists():
        return {}
    return {name: ShardSize(**size) for name, size in json.loads(path.read_text())["shards"].items()}
