"""`ivgr pack`."""

import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ivgr.core.errors import UserError
from ivgr.core.printable import in_line, progress_bar
from ivgr.core.settings import NonNegativeInt, PositiveInt, checked
from ivgr.data.shard_index import NAME as SIZES
from ivgr.tools.packing_data.admit import admit_row
from ivgr.tools.packing_data.convert import kind_of
from ivgr.tools.packing_data.pack_state import NAME as JOURNAL
from ivgr.tools.packing_data.pack_state import PackState
from ivgr.tools.packing_data.source_images import MOST_PIXELS
from ivgr.tools.packing_data.source_rows import count_kinds, find_sources, mix_kinds
from ivgr.tools.packing_data.unpack import image_folder
from ivgr.tools.packing_data.write_packed import REPORT, Packer, Target

VERSION = 2


@checked("pack: --")
def pack(
    source: Path,
    target: Path,
    image_dir: Path | None = None,
    name: str = "train",
    per_shard: PositiveInt = 1000,
    most_pixels: PositiveInt = MOST_PIXELS,
    workers: NonNegativeInt = 0,
    overwrite: bool = False,
) -> None:
    """Pack rows of another format into shards; killed, the same command goes on.

    Rows that cannot be used are listed in TARGET/rejected.jsonl, and the exit code is 1.

    Args:
        source: A file of rows, or a folder of them. .parquet: rows as iVGR publishes them, or with
            images inside; .jsonl or .json: the same rows, or the fields of a sample; .json in
            COCO's form: questions are made up from the boxes; .csv: the columns
            id,question,answer,image,boxes,kind,check,labels, of which question and answer are
            needed, boxes and labels as JSON lists. Boxes are pixels of the upright image.
        target: Where the shards go, as NAME-000000.tar, …
        image_dir: Folder or tar(.gz) in which image paths start; the source's folder by default.
        name: Name of the shards.
        per_shard: Samples per shard.
        most_pixels: Larger images are shrunk to this, and boxes with them.
        workers: Threads that check images; 0 for one a core.
        overwrite: Start anew, whatever lies in the folder.
    """
    sources = find_sources(source)
    shards = Target(target, name, per_shard)
    try:
        _prepare(shards, overwrite)
        folder = image_folder(image_dir, source, target)
        with closing(PackState(target, _setting(sources, image_dir, shards, most_pixels))) as journal:
            _pack(sources, journal, shards, folder, most_pixels, workers)
            rejected = _summarise(journal, target)
    except (OSError, sqlite3.Error) as error:
        raise UserError(f"pack: {error}; whole shards stay, and the same command goes on") from error
    if rejected:
        raise SystemExit(1)


def _pack(
    sources: list[Path], journal: PackState, target: Target, folder: Path, most_pixels: int, workers: int
) -> None:
    counts = count_kinds(sources, kind_of)
    if not counts:
        raise UserError(f"pack: {sources[0]} holds no row")
    admit = partial(admit_row, folder=folder, most_pixels=most_pixels)
    with _progress(counts.total()) as moved:
        packer = Packer(target, journal, admit, workers or os.cpu_count() or 1, moved)
        packer.pack(mix_kinds(sources, kind_of, counts))


def _setting(sources: list[Path], image_dir: Path | None, target: Target, most_pixels: int) -> dict:
    """Returns the settings that the shards depend on."""
    stats = [(path.name, path.stat()) for path in sources]
    return {
        "source": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
        "--image_dir": str(image_dir and image_dir.absolute()),
        "--name": target.name,
        "--per_shard": target.per_shard,
        "--most_pixels": most_pixels,
        "version of the packing": VERSION,
    }


def _prepare(target: Target, overwrite: bool) -> None:
    """Makes the folder; what an earlier pack left there goes if `overwrite`. UserError if there
    are shards that no journal knows."""
    target.folder.mkdir(parents=True, exist_ok=True)
    shards = list(target.folder.glob("*.tar"))
    if overwrite:
        for path in (*target.written(), *(target.folder / name for name in (JOURNAL, SIZES, REPORT))):
            path.unlink(missing_ok=True)
    elif shards and not (target.folder / JOURNAL).exists():
        raise UserError(
            f"{target.folder}: {shards[0].name} there was written by no pack; choose another folder"
        )


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar over the source's rows, in a terminal only; yields what moves it."""
    columns = (
        TextColumn("packing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with progress_bar(Console(stderr=True), *columns) as bar:
        task = bar.add_task("", total=total)
        yield lambda rows: bar.update(task, completed=rows)


def _summarise(journal: PackState, target: Path) -> int:
    """Prints what became of the rows; returns how many were rejected."""
    shards = journal.shards
    paired, single = sum(shard.paired for shard in shards), sum(shard.single for shard in shards)
    print(f"{paired + single} samples ({paired} paired, {single} single) in {len(shards)} shards in {target}")
    for note, count in journal.notes().items():
        print(f"  {note}: {count}")
    reasons = Counter(entry["reason"].partition(":")[0] for entry in journal.rejected())
    if reasons:
        print(f"{reasons.total()} rows rejected, listed in {target / REPORT}:")
        for reason, count in reasons.most_common():
            print(f"  {in_line(reason)}: {count}")
        print("mend them and pack again with --overwrite, or leave them out")
    return reasons.total()
