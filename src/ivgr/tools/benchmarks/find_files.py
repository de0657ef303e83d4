"""Finds a benchmark's files: a file, or a folder that holds it under one of its usual names."""

from pathlib import Path

from ivgr.core.errors import UserError
from ivgr.tools.benchmarks.benchmarks import Benchmark
from ivgr.tools.benchmarks.json_rows import JsonRows
from ivgr.tools.benchmarks.parquet_rows import ParquetRows
from ivgr.tools.benchmarks.rows import RowFile
from ivgr.tools.benchmarks.tsv_rows import TsvRows

SUFFIXES = (".tsv", ".parquet", ".json")
READERS = {".parquet": ParquetRows, ".json": JsonRows}


def open_rows(paths: list[Path], benchmark: Benchmark, asked: bool = True) -> RowFile:
    """The rows of one TSV or of parquets or JSON lists; UserError names file and row where none can be
    used. Not `asked`, rows need no images."""
    if paths[0].suffix == ".tsv":
        return TsvRows(paths[0], benchmark, asked)
    return READERS[paths[0].suffix](paths, benchmark, asked)


def find_files(data: Path, benchmark: Benchmark) -> list[Path]:
    """The TSV, the parquets or the JSON list of `benchmark`: `data` itself, or what in the folder `data`
    is called like it: a file, or all parquets or else all JSON of a folder; a JSON list only where there
    is nothing else. UserError if there is none, or a choice."""
    if data.is_file():
        if data.suffix not in SUFFIXES:
            raise UserError(f"{data}: must be a .tsv, a .parquet or a .json")
        return [data]
    if not data.is_dir():
        raise UserError(f"{data}: nothing there; name a .tsv, .parquet or .json, or a folder with such")
    for name in benchmark.files:
        called = [path for path in sorted(data.iterdir()) if _is_called(path, name)]
        found = [path for path in called if path.suffix != ".json"] or called
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UserError(f"{data}: {names} may all be {benchmark.title}; give the one as --data")
        if found:
            inside = _inside(found[0]) if found[0].is_dir() else found
            return inside or _none(found[0], benchmark)
    return _none(data, benchmark)


def _inside(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.parquet")) or sorted(folder.rglob("*.json"))


def _is_called(path: Path, name: str) -> bool:
    """Whether the letters and digits of its name begin with `name`, and no number goes on there
    ("cvbench2d" is not "cvbench")."""
    plain = "".join(c for c in path.stem.lower() if c.isalnum())
    rest = plain.removeprefix(name)
    usable = path.is_dir() or (path.suffix in SUFFIXES and path.is_file())
    return usable and rest != plain and not rest[:1].isdecimal()


def _none(folder: Path, benchmark: Benchmark) -> list[Path]:
    raise UserError(
        f"{folder}: no .tsv, .parquet or .json of {benchmark.title} (called like {benchmark.files[0]}); "
        "name the file itself"
    )
