"""What costs few bytes and unpacks to many, or takes a matcher long, is refused before it is read."""

import gzip
import io
import json
import os
import tarfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ivgr.data.parquet as parquet
import ivgr.data.tar as tar
import ivgr.tools.packing_data.source_rows as rows
from ivgr.core.errors import UserError
from ivgr.core.regular_files import read_file
from ivgr.core.rejection import RejectedSample
from ivgr.data.answer_options import letter_options, lists_options
from ivgr.data.parquet import Oversized, read_batches
from ivgr.data.tar import read_shard
from ivgr.tools.benchmarks.lists import read_list
from ivgr.tools.packing_data.source_rows import read_rows
from ivgr.tools.packing_data.unpack import unpack_archive
from support.samples import jpeg


def packed(path: Path, table: dict, **options) -> Path:
    pq.write_table(pa.table(table), path, **options)
    return path


def refused(path: Path, *names: str) -> str:
    with pq.ParquetFile(path) as file, pytest.raises(Oversized) as caught:
        next(read_batches(file, names, 32))
    return caught.value.strerror


@pytest.fixture
def small(monkeypatch):
    """The bounds of a world in which a megabyte is much."""
    monkeypatch.setattr(parquet, "SLACK", 2**20)
    monkeypatch.setattr(parquet, "MOST", 2**20)
    for name, value in (("SLACK", 2**20), ("LARGEST_FILE", 2**22), ("LONGEST_HEADER", 2**16)):
        monkeypatch.setattr(tar, name, value)


def test_a_parquet_column_that_unpacks_to_much_is_refused(tmp_path, small):
    bomb = packed(tmp_path / "a.parquet", {"q": ["x" * 2**22]}, compression="zstd", use_dictionary=False)
    assert bomb.stat().st_size < 2**14 and "unpack" in refused(bomb, "q")
    with pytest.raises(UserError, match=r"a\.parquet: no whole parquet \(column 'q'"):
        list(read_rows([bomb]))


def test_a_list_of_free_nulls_is_refused(tmp_path, small):
    bomb = packed(tmp_path / "a.parquet", {"boxes": pa.array([[None] * 10**6], pa.list_(pa.int32()))})
    assert bomb.stat().st_size < 2**12 and "values" in refused(bomb, "boxes")


def test_what_a_dictionary_repeats_is_read_a_few_rows_at_a_time(tmp_path, small, monkeypatch):
    """One value of 80 KB stands in two hundred rows for nothing."""
    monkeypatch.setattr(parquet, "MOST", 2**17)
    value = os.urandom(40_000).hex()
    path = packed(tmp_path / "a.parquet", {"q": [value] * 200, "n": list(range(200))}, compression="none")
    assert path.stat().st_size < 2**18
    with pq.ParquetFile(path) as file:
        sizes = [len(batch) for batch in read_batches(file, ["q", "n"], 32)]
    assert max(sizes) == 1 and sum(sizes) == 200
    with pq.ParquetFile(path) as file:
        found = [row["n"] for batch in read_batches(file, ["n"], 32) for row in batch]
    assert found == list(range(200))


def test_an_honest_parquet_is_read_whole(tmp_path):
    table = {"image": [jpeg((n, 0, 0)) for n in range(100)], "q": ["what?"] * 100, "n": [[1, 2]] * 100}
    path = packed(tmp_path / "a.parquet", table, row_group_size=30)
    with pq.ParquetFile(path) as file:
        assert [row for batch in read_batches(file, table, 32) for row in batch] == pa.table(
            table
        ).to_pylist()


def test_a_line_beyond_any_row_is_one_broken_row(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "LONGEST", 100)
    lines = ['{"a": 1}', json.dumps({"a": "x" * 950}), '{"a": 2}', json.dumps({"a": "x" * 90}), '{"a": 3}']
    (tmp_path / "r.jsonl").write_text("\n".join(lines))
    found = list(read_rows([tmp_path / "r.jsonl"]))
    assert [row.fields.get("a") if not row.broken else row.broken for row in found] == [
        1, "a line of more than 100 bytes", 2, "x" * 90, 3,
    ]  # fmt: skip
    assert [row.position for row in found] == [f"r.jsonl:{n}" for n in range(1, 6)]


def test_deep_json_in_a_cell_is_one_broken_row(tmp_path):
    (tmp_path / "r.csv").write_text(f"question,answer,boxes\nq,a,{'[' * 100_000}\nq,a,\n")
    one, other = read_rows([tmp_path / "r.csv"])
    assert "must be a JSON list" in one.broken and len(one.broken) < 200 and not other.broken


def zeros(path: Path, size: int, count: int) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for number in range(count):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = size
            file.addfile(info, io.BytesIO(bytes(size)))
    return path


def test_an_archive_of_zeros_is_refused(tmp_path, small):
    archive = zeros(tmp_path / "a.tar.gz", 2**21, 8)
    with pytest.raises(UserError, match=r"a\.tar\.gz.*compressed bytes hold more"):
        unpack_archive(archive, tmp_path / "images")
    assert sum(path.stat().st_size for path in (tmp_path / "images").iterdir()) <= 2**22
    one = zeros(tmp_path / "b.tar.gz", 2**23, 1)
    with pytest.raises(UserError, match=r"b\.tar\.gz.*0\.jpg is sparse or larger"):
        unpack_archive(one, tmp_path / "others")
    assert not list((tmp_path / "others").iterdir())


def test_a_compressed_shard_of_zeros_is_one_rejection(tmp_path, small):
    shard = zeros(tmp_path / "a.tar", 2**21, 8)
    with pytest.raises(RejectedSample) as caught:
        list(read_shard(str(shard)))
    assert caught.value.reason == "shard: unpacks too far"


def test_a_header_of_gigabytes_is_not_read(tmp_path):
    """A pax header that says it has 3 GB."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 3 * 2**30
    block = info.tobuf(tarfile.USTAR_FORMAT)
    (tmp_path / "a.tar").write_bytes(block)
    with (tmp_path / "a.tar").open("r+b") as file:
        file.truncate(4 * 2**30)  # a hole
    (tmp_path / "b.tar").write_bytes(gzip.compress(block + bytes(2**20)))
    begin = time.monotonic()
    for name in ("a.tar", "b.tar"):
        with pytest.raises(RejectedSample) as caught:
            list(read_shard(str(tmp_path / name)))
        assert caught.value.reason == "shard: not a tar"
    assert time.monotonic() - begin < 5


def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "link.jpg"):
        with pytest.raises(OSError, match="no regular file"):
            read_file(tmp_path / name)
    (tmp_path / "a.jpg").write_bytes(bytes(11))
    with pytest.raises(OSError, match="more than 10 bytes"):
        read_file(tmp_path / "a.jpg", 10)


@pytest.mark.parametrize(
    "read",
    [
        lambda: letter_options(["A." + " " * 300_000]),
        lambda: letter_options(["A. " + "\n" * 300_000 + "x" + " " * 300_000]),
        lambda: lists_options("A." + "; " * 200_000 + "A." * 100_000, {"A": "x"}),
        lambda: pytest.raises(ValueError, read_list, "['" + "\\'" * 200_000),
        lambda: pytest.raises(ValueError, read_list, "['\"" + "\\'\\\"" * 100_000),
    ],
    ids=["spaces", "around", "question", "quotes", "both quotes"],
)
def test_no_text_takes_a_matcher_long(read):
    begin = time.monotonic()
    read()
    assert time.monotonic() - begin < 3


def test_lettered_options_lose_their_letters():
    assert letter_options([" A. a cat ", "(B) a dog\n"]) == {"A": "a cat", "B": "a dog"}
    assert letter_options(["A. a cat", "B."]) == {"A": "A. a cat", "B": "B."}
    assert letter_options(["A. a cat", None, "C: x"]) == {"A": "a cat", "C": "x"}


def test_a_quoted_bracket_nests_nothing():
    assert read_list("['it\\'s [[[[[[[[[[', \"b\"]") == ["it's [[[[[[[[[[", "b"]
