"""Where a benchmark lies: a file, or a folder that holds it under one of its usual names."""

from pathlib import Path

from ivgr.errors import UserError
from ivgr.evaluation.benchmarks import Benchmark
from ivgr.evaluation.parquet import ParquetRows
from ivgr.evaluation.rows import RowFile
from ivgr.evaluation.tsv import TsvRows

SUFFIXES = (".tsv", ".parquet")


def open_rows(paths: list[Path], benchmark: Benchmark) -> RowFile:
    """The rows of one TSV or of parquets; UserError names file and row where one cannot be used."""
    return TsvRows(paths[0], benchmark) if paths[0].suffix == ".tsv" else ParquetRows(paths, benchmark)


def find_files(data: Path, benchmark: Benchmark) -> list[Path]:
    """The TSV or the parquets of `benchmark`: `data` itself, or what in the folder `data` is
    called like it: a file, or all parquets of a folder. UserError if there is none, or a choice."""
    if data.is_file():
        if data.suffix not in SUFFIXES:
            raise UserError(f"{data}: must be a .tsv or a .parquet")
        return [data]
    if not data.is_dir():
        raise UserError(f"{data}: nothing there; name a .tsv or .parquet, or a folder with such")
    for name in benchmark.files:
        found = [path for path in sorted(data.iterdir()) if _is_called(path, name)]
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UserError(f"{data}: {names} may all be {benchmark.title}; give the one as --data")
        if found:
            inside = sorted(found[0].rglob("*.parquet")) if found[0].is_dir() else found
            return inside or _none(found[0], benchmark)
    return _none(data, benchmark)


def _is_called(path: Path, name: str) -> bool:
    """Whether the letters and digits of its name begin with `name`, and no number goes on there
    ("cvbench2d" is not "cvbench")."""
    plain = "".join(c for c in path.stem.lower() if c.isalnum())
    rest = plain.removeprefix(name)
    return (path.is_dir() or path.suffix in SUFFIXES) and rest != plain and not rest[:1].isdecimal()


def _none(folder: Path, benchmark: Benchmark) -> list[Path]:
    raise UserError(
        f"{folder}: no .tsv or .parquet of {benchmark.title} (called like {benchmark.files[0]}); "
        "name the file itself"
    )
