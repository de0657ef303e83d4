"""sizes.json, beside packed shards: what each of them holds, so that nobody has to read 500 GB
to count it."""

from dataclasses import asdict, dataclass
from pathlib import Path

from ivgr.core.atomic_files import write_json
from ivgr.core.readers import read_json

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
    write_json(folder / NAME, {"shards": shards})


def read_sizes(folder: Path) -> dict[str, ShardSize]:
    """The sizes that lie in `folder`, {} without a sizes.json."""
    path = folder / NAME
    if not path.exists():
        return {}
    return read_json(path, "remove it, or pack the shards again", _read_shards)


def _read_shards(content: dict) -> dict[str, ShardSize]:
    """ValueError, or what indexing raises, if that is not what was written."""
    sizes = {name: ShardSize(**size) for name, size in content["shards"].items()}
    for name, size in sizes.items():
        counts = (size.samples, size.paired, size.single, size.bytes)
        if not all(type(count) is int and count >= 0 for count in counts) or type(size.sha256) is not str:
            raise ValueError(f"{name} has sizes that are no counts")
    return sizes
