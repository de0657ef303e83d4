"""`ivgr pack` on rows of the published schema: exact, ordered, resumable, and honest about rejects."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from contextlib import closing

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ivgr.core.sample import read_sample
from ivgr.data.shard_index import read_sizes
from ivgr.data.shards import find_shards, read_shards
from ivgr.tools.packing_data.pack_state import PackState
from ivgr.tools.packing_data.source_rows import read_rows
from support.packing import contents, pack, rejected, samples
from support.published import BY_HAND, PHOTOS, published_row, write_published
from support.samples import encode_image, jpeg


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    return folder, write_published(folder)


@pytest.fixture(scope="module")
def packed(published, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "shards"
    assert pack(published[0] / "rows.parquet", folder, "--per_shard", 10) == 0
    return folder


def test_every_row_arrives_exactly(published, packed):
    folder, rows = published
    found = {(s.question, s.images[0]): s for s in samples(packed)}
    assert len(found) == len(rows)
    for row in rows:
        sample = found[row["query"], (folder / row["images"][0]).read_bytes()]
        assert sample.boxes == tuple(tuple(box["bbox"]) for box in row["target_instances"])
        assert (sample.answer, sample.source) == (row["answer"], row["datasource"])
        assert sample.kind == ("paired" if row["datasource"] == "treevgr" else "single")
        assert sample.check == ("text" if sample.kind == "paired" else "math")


def test_photographs_keep_their_format(packed):
    names = Counter()
    for shard in find_shards(str(packed)):
        with tarfile.open(shard) as tar:
            for member in tar:
                names[member.name.rpartition(".")[2]] += 1
    assert names["png"] == sum(photo[0].endswith("png") for photo in BY_HAND) == 4
    assert names["jpg"] == 41 and names["json"] == 45


def test_kinds_are_mixed_in_every_shard(packed):
    """The source is sorted by data source, so that in its order some shards would hold one kind."""
    sizes = read_sizes(packed)
    assert list(sizes) == [f"train-{n:06d}.tar" for n in range(5)]
    assert [size.samples for size in sizes.values()] == [10, 10, 10, 10, 5]
    assert all(size.single / size.samples == pytest.approx(8 / 45, abs=0.1) for size in sizes.values())
    assert all(size.paired and size.single for size in sizes.values())


def test_sizes_tell_what_is_there(packed):
    for name, size in read_sizes(packed).items():
        data = (packed / name).read_bytes()
        kinds = Counter(read_sample(entry).kind for entry in read_shards([str(packed / name)]))
        assert (size.bytes, size.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert (size.paired, size.single) == (kinds["paired"], kinds["single"])


@pytest.mark.parametrize("workers", [1, 7])
def test_the_number_of_workers_changes_nothing(published, packed, tmp_path, workers):
    options = ["--per_shard", 10, "--workers", workers]
    assert pack(published[0] / "rows.parquet", tmp_path / "again", *options) == 0
    assert contents(tmp_path / "again") == contents(packed)


def test_ids_outlive_filtering_and_order(packed, tmp_path):
    write_published(tmp_path / "half", change=lambda rows: rows[::-2])
    assert pack(tmp_path / "half" / "rows.parquet", tmp_path / "out") == 0
    everything = {(s.question, s.images): s.id for s in samples(packed)}
    half = samples(tmp_path / "out")
    assert len(half) == 23 and all(everything[s.question, s.images] == s.id for s in half)


def test_a_repeat_does_nothing(published, packed):
    before = {path: path.stat().st_mtime_ns for path in packed.glob("*.tar")}
    assert pack(published[0] / "rows.parquet", packed, "--per_shard", 10) == 0
    assert {path: path.stat().st_mtime_ns for path in packed.glob("*.tar")} == before


def test_a_damaged_shard_is_written_anew(published, packed, tmp_path):
    assert pack(published[0] / "rows.parquet", tmp_path / "out", "--per_shard", 10) == 0
    shard = tmp_path / "out" / "train-000002.tar"
    first = (tmp_path / "out" / "train-000000.tar").stat().st_mtime_ns
    shard.write_bytes(shard.read_bytes()[:-1000] + b"x" * 1000)
    assert pack(published[0] / "rows.parquet", tmp_path / "out", "--per_shard", 10) == 0
    assert contents(tmp_path / "out") == contents(packed)
    assert (tmp_path / "out" / "train-000000.tar").stat().st_mtime_ns == first


@pytest.mark.slow
def test_killed_and_repeated_it_writes_the_same_bytes(tmp_path):
    """SIGKILL at two moments, each time a little further; the shards of an unbroken run come out."""
    broken = [published_row("Is it there?", "no", ["images/none.jpg"], [[0, 0, 9, 9]])]
    write_published(tmp_path / "in", 150, lambda rows: rows[:70] + broken + rows[70:])
    command = [tmp_path / "in" / "rows.parquet", tmp_path / "out", "--per_shard", 7]
    slow = (
        "import time, sys; from pathlib import Path; from ivgr.tools.packing_data import pack as c;"
        "admit = c.admit_row;"
        "c.admit_row = lambda row, **o: (time.sleep(.02), admit(row, **o))[1];"
        "c.pack(Path(sys.argv[1]), Path(sys.argv[2]), per_shard=7, workers=1)"
    )
    kept = {}
    for wanted in (2, 12):
        process = subprocess.Popen([sys.executable, "-c", slow, *map(str, command[:2])])
        while len(list((tmp_path / "out").glob("*.tar"))) < wanted:
            assert process.poll() is None
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "out" / "sizes.json").exists()
        times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
        assert sum(times.get(path) == kept[path] for path in kept) >= len(kept) - 1
        kept = times
    assert pack(*command) == 1
    assert pack(command[0], tmp_path / "unbroken", *command[2:]) == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")
    assert len(rejected(tmp_path / "out")) == 1 and len(samples(tmp_path / "out")) == 155


def test_two_packs_do_not_share_a_folder(published, packed, tmp_path, capsys):
    assert pack(published[0] / "rows.parquet", packed, "--per_shard", 11) == 2
    assert "--per_shard was 10, now 11" in capsys.readouterr().err
    (tmp_path / "own-000000.tar").touch()
    assert pack(published[0] / "rows.parquet", tmp_path) == 2
    assert "own-000000.tar" in capsys.readouterr().err


def test_a_second_pack_at_the_same_time_is_refused(published, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with closing(PackState(tmp_path / "out", {})):
        assert pack(published[0] / "rows.parquet", tmp_path / "out") == 2
    assert "another pack" in capsys.readouterr().err


def test_a_broken_journal_is_named(published, tmp_path, capsys):
    (tmp_path / "pack.sqlite").write_bytes(b"no journal" * 100)
    assert pack(published[0] / "rows.parquet", tmp_path) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert pack(published[0] / "rows.parquet", tmp_path, "--overwrite") == 0


def test_help_names_formats_and_columns(capsys):
    assert pack("--help", "") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "id,question,answer,image,boxes,kind,check,labels" in said and "COCO" in said


def test_overwrite_starts_anew(published, packed, tmp_path):
    assert pack(published[0] / "rows.parquet", tmp_path / "out", "--per_shard", 3) == 0
    assert pack(published[0] / "rows.parquet", tmp_path / "out", "--per_shard", 10, "--overwrite") == 0
    assert contents(tmp_path / "out") == contents(packed)


REJECTS = {
    "missing image": published_row("A?", "a", ["images/none.jpg"], [[0, 0, 9, 9]]),
    "image path": published_row("B?", "b", ["../rows.parquet"], [[0, 0, 9, 9]]),
    "broken image": published_row("C?", "c", ["images/broken.jpg"], [[0, 0, 9, 9]]),
    "box outside the image": published_row("D?", "d", ["images/chelsea.png"], [[440, 0, 470, 9]]),
    "bad box": published_row("E?", "e", ["images/chelsea.png"], [[0, 0, float("nan"), 9]]),
    "not a sample": published_row("F?", " ", ["images/chelsea.png"], [[0, 0, 9, 9]]),
    "image markers": published_row("G <image>?", "g", ["images/chelsea.png"], [[0, 0, 9, 9]]),
    "special token": published_row("H <|image_pad|>?", "h", ["images/chelsea.png"], [[0, 0, 9, 9]]),
    "aspect ratio": published_row("I?", "i", ["images/steep.png"], [[0, 0, 9, 9]]),
    "duplicate id": published_row(BY_HAND[0][1], BY_HAND[0][2], [f"images/{BY_HAND[0][0]}"], BY_HAND[0][3]),
}


def test_what_is_wrong_is_listed_and_the_rest_is_packed(published, packed, tmp_path, capsys):
    write_published(tmp_path / "in", change=lambda rows: rows + list(REJECTS.values()))
    images = tmp_path / "in" / "images"
    whole = (images / "rocket.jpg").read_bytes()
    (images / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "steep.png").write_bytes(encode_image(Image.new("RGB", (402, 2)), "PNG"))
    assert pack(tmp_path / "in" / "rows.parquet", tmp_path / "out", "--per_shard", 10) == 1
    entries = rejected(tmp_path / "out")
    assert [entry["reason"].partition(":")[0] for entry in entries] == list(REJECTS)
    assert [entry["row"] for entry in entries] == [f"rows.parquet:{n}" for n in range(46, 56)]
    assert {s.id for s in samples(tmp_path / "out")} == {s.id for s in samples(packed)}
    printed = capsys.readouterr()
    assert "10 rows rejected" in printed.out and "missing image: 1" in printed.out and not printed.err


def test_a_box_that_sticks_out_is_clipped_and_counted(tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(jpeg(size=(100, 50)))
    row = {"question": "Where?", "answer": "here", "image": "a.jpg", "boxes": [[-3, 10, 40.5, 53]]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    assert pack(tmp_path / "rows.jsonl", tmp_path / "out") == 0
    assert samples(tmp_path / "out")[0].boxes == ((0, 10, 40.5, 50),)
    assert "box clipped to its image: 1" in capsys.readouterr().out


def test_a_parquet_with_images_inside_is_streamed(tmp_path):
    """One row group of 64 MB of image bytes, of which a small part is in memory at any time."""
    noise = [os.urandom(1 << 18) for _ in range(4)]
    plain = {"use_dictionary": False, "compression": "none", "write_batch_size": 8}
    table = {
        "question": ["?"] * 256,
        "image": [{"bytes": noise[i % 4], "path": None} for i in range(256)],
    }
    pq.write_table(pa.table(table), tmp_path / "rows.parquet", **plain)
    pool = pa.default_memory_pool()
    before, most = pool.bytes_allocated(), 0
    for row in read_rows([tmp_path / "rows.parquet"]):
        most = max(most, pool.bytes_allocated() - before)
        assert len(row.fields["image"]["bytes"]) == 1 << 18
    assert most < 24 << 20


def test_photographs_are_where_the_tests_expect_them():
    assert all((PHOTOS / photo[0]).exists() for photo in BY_HAND)
