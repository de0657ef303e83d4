"""Files that nobody has looked at yet: read whole, but only what is a file, and of bounded size."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

LARGEST_FILE = 2**28  # bytes, of an image or of any other file inside a shard


def open_file(path: Path | str) -> BinaryIO:
    """A regular file to read from; OSError, its strerror in words, if it is none: a pipe or a device
    might never end."""
    try:
        # Without O_NONBLOCK opening a pipe waits for whoever writes into it.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    except ValueError as error:  # a NUL, or half a surrogate pair
        raise OSError(0, "no name of a file", str(path)) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(0, "no regular file", str(path))
    return file


def read_file(path: Path, most: int | None = None) -> bytes:
    """The bytes of a regular file; OSError as of `open_file`, or if it has more than `most` bytes
    (default: `LARGEST_FILE`)."""
    most = LARGEST_FILE if most is None else most
    with open_file(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(0, f"more than {most} bytes", str(path))
    return data
