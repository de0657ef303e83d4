"""Files that nobody has looked at yet: read whole, but only what is a file, and of bounded size."""

import os
import stat
from pathlib import Path

LARGEST_FILE = 2**28  # bytes, of an image or of any other file inside a shard


def read_file(path: Path, most: int | None = None) -> bytes:
    """The bytes of a regular file; a pipe or a device, which might never end, is not read. OSError,
    its strerror in words, if it is none or has more than `most` bytes (default: `LARGEST_FILE`)."""
    most = LARGEST_FILE if most is None else most
    # Without O_NONBLOCK opening a pipe waits for whoever writes into it.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "no regular file", str(path))
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(0, f"more than {most} bytes", str(path))
    return data
