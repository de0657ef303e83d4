"""Files and folders that appear whole or not at all, whenever the process or the machine dies.

All are written beside their place, as NAME.part, forced to disk and renamed. What a killed writer has left
there, the next one overwrites.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PART = ".part"


def part_of(path: Path) -> Path:
    """Returns the path where `path` is written until it is complete."""
    return path.with_name(path.name + PART)


@contextmanager
def file_to_write(path: Path, mode: str = "wb", forced: bool = True, **options) -> Iterator[IO]:
    """An open file, which takes its place at `path` when the block ends; an error leaves nothing.

    Args:
        mode: As of `open`, and so are `options`.
        forced: Onto the disk before it takes its place, against power cuts; not for many small files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        with part.open(mode, **options) as file:
            yield file
    except Exception:
        part.unlink(missing_ok=True)
        raise
    publish(part, path, forced)


def write_atomically(path: Path, data: bytes) -> None:
    with file_to_write(path) as file:
        file.write(data)


def write_json(path: Path, content: object) -> None:
    write_atomically(path, json.dumps(content, indent=1).encode())


@contextmanager
def folder_to_write(path: Path) -> Iterator[Path]:
    """An empty folder, which takes the place of whatever is at `path` when the block ends; an error
    leaves nothing."""
    part = part_of(path)
    remove(part)
    part.mkdir(parents=True)
    try:
        yield part
    except Exception:
        remove(part)
        raise
    remove(path)
    publish(part, path)


def publish(part: Path, path: Path, forced: bool = True) -> None:
    """Gives a finished file, link or folder its name; `forced` as in `file_to_write`."""
    if forced:
        for inner in part.rglob("*"):
            _force(inner)
        _force(part)
    os.replace(part, path)
    if forced:
        _force(path.parent)


def _force(path: Path) -> None:
    """Onto the disk: a file, or the names in a folder, which not all file systems can."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """A file, a link or a folder with all that it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
