"""An image archive (tar, tar.gz, …) → a folder beside the shards.

A compressed tar cannot be entered in the middle, and rows ask for images in their own order;
so it is unpacked once. A broken-off unpacking goes on after the images that are whole.
"""

import json
import lzma
import shutil
import sys
import tarfile
import zlib
from pathlib import Path
from typing import IO, cast

from ivgr.core.atomic_files import file_to_write, write_atomically
from ivgr.core.errors import UserError
from ivgr.core.readers import read_json
from ivgr.core.regular_files import open_file
from ivgr.core.rejection import RejectedSample
from ivgr.data.tar import read_members

MARKER = ".unpacked.json"


def image_folder(given: Path | None, source: Path, target: Path) -> Path:
    """The folder in which rows' image paths start: `given`, or where `source` lies; an archive
    is first unpacked beside `target`. UserError if there is none."""
    if given is None:
        return source if source.is_dir() else source.parent
    if given.is_dir():
        return given
    if not given.exists():
        raise UserError(f"pack --image_dir: no folder or archive at {given}")
    folder = target.parent / f"{target.name}.images"
    unpack_archive(given, folder)
    return folder


def unpack_archive(archive: Path, folder: Path) -> None:
    """Every file of `archive` into `folder`, links and devices left out, unless the marker says
    that it is done. UserError if the archive is broken or would write outside `folder`."""
    stat = archive.stat()
    made_of = {"archive": archive.name, "bytes": stat.st_size, "modified": stat.st_mtime_ns}
    marker = folder / MARKER
    if marker.exists():
        if read_json(marker, "remove the folder") == made_of:
            return
        raise UserError(f"{folder}: holds images of another archive than {archive}; remove the folder")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with open_file(archive) as file:
            for tar, member in read_members(file, archive.name, sys.maxsize):
                _unpack_member(tar, member, folder)
    except RejectedSample as error:
        raise UserError(f"{archive}: {error}") from error
    except tarfile.FilterError as error:
        raise UserError(f"{archive}: {error}; do not use this archive") from error
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        raise UserError(f"{archive}: cannot be unpacked into {folder} ({error}); fetch it anew") from error
    write_atomically(marker, json.dumps(made_of).encode())


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Under another name until it is whole; an image that lies there is left."""
    path = folder / tarfile.data_filter(member, str(folder)).name
    if path.exists() and path.stat().st_size == member.size:
        return
    with cast(IO[bytes], tar.extractfile(member)) as packed, file_to_write(path, forced=False) as file:
        shutil.copyfileobj(packed, file)
