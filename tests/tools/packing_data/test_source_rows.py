"""The same rows from every format are the same samples; broken files and rows are named."""

import csv
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivgr.core.errors import UserError
from ivgr.tools.packing_data import source_rows as rows_module
from ivgr.tools.packing_data.source_rows import read_rows
from support.packing import pack, rejected, samples
from support.published import BY_HAND, PHOTOS, write_published
from support.samples import jpeg

LIGHT = [
    {"question": question, "answer": answer, "image": f"images/{name}", "boxes": boxes, "source": "hand"}
    for name, question, answer, boxes in BY_HAND
]


@pytest.fixture
def photos(tmp_path):
    """A folder with images/NAME of each photograph."""
    (tmp_path / "images").mkdir()
    for photo in BY_HAND:
        (tmp_path / "images" / photo[0]).write_bytes((PHOTOS / photo[0]).read_bytes())
    return tmp_path


def write_jsonl(path: Path, rows: list) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, rows: list) -> None:
    path.write_text(json.dumps(rows, indent=2))


def write_csv(path: Path, rows: list) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer", "image", "boxes"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row | {"boxes": json.dumps(row["boxes"])} for row in rows)


def write_embedded(path: Path, rows: list) -> None:
    """As HF datasets write images: a struct of bytes and path."""
    whole = [
        row | {"image": {"bytes": (path.parent / row["image"]).read_bytes(), "path": "x.png"}} for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(whole), path)


WRITERS = {
    "rows.jsonl": write_jsonl,
    "rows.json": write_json,
    "rows.csv": write_csv,
    "rows.parquet": write_embedded,
}


def test_the_same_rows_from_every_format_are_the_same_samples(photos):
    found = {}
    for name, write in WRITERS.items():
        write(photos / name, LIGHT)
        assert pack(photos / name, photos / f"out-{name}") == 0
        found[name] = [vars(s) | {"source": ""} for s in samples(photos / f"out-{name}")]
    assert all(one == found["rows.jsonl"] for one in found.values())
    for sample, (name, question, answer, boxes) in zip(found["rows.csv"], BY_HAND, strict=True):
        assert (sample["question"], sample["answer"]) == (question, answer)
        assert sample["boxes"] == tuple(map(tuple, boxes)) and sample["kind"] == "paired"
        assert sample["images"] == ((PHOTOS / name).read_bytes(),)


def test_hf_datasets_own_parquet_is_read(photos):
    datasets = pytest.importorskip("datasets")
    columns = {name: [row[name] for row in LIGHT] for name in ("question", "answer", "boxes")}
    columns["image"] = [str(photos / row["image"]) for row in LIGHT]
    whole = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    table = whole.map(lambda row: row, load_from_cache_file=False).with_format("arrow")[:]
    embedded = datasets.table.embed_table_storage(table)
    (photos / "hf").mkdir()
    pq.write_table(embedded, photos / "hf" / "train-00000-of-00001.parquet")
    assert pack(photos / "hf", photos / "out") == 0
    assert [s.images[0] for s in samples(photos / "out")] == [(PHOTOS / p[0]).read_bytes() for p in BY_HAND]


def test_a_published_row_as_jsonl_is_the_same_sample(tmp_path):
    rows = write_published(tmp_path / "in", 20)
    write_jsonl(tmp_path / "in" / "rows.jsonl", rows)
    assert pack(tmp_path / "in" / "rows.parquet", tmp_path / "a") == 0
    assert pack(tmp_path / "in" / "rows.jsonl", tmp_path / "b") == 0
    assert samples(tmp_path / "a") == samples(tmp_path / "b")


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_images_come_out_of_an_archive(photos, suffix):
    write_jsonl(photos / "rows.jsonl", LIGHT)
    assert pack(photos / "rows.jsonl", photos / "plain") == 0
    archive = photos / f"images.{suffix}"
    with tarfile.open(archive, "w:gz" if suffix.endswith("gz") else "w") as tar:
        tar.add(photos / "images", "./images")
    (photos / "elsewhere").mkdir()
    (photos / "rows.jsonl").rename(photos / "elsewhere" / "rows.jsonl")
    command = photos / "elsewhere" / "rows.jsonl", photos / "out", "--image_dir", archive
    assert pack(*command) == 0
    assert samples(photos / "out") == samples(photos / "plain")
    unpacked = photos / "out.images" / "images" / "rocket.jpg"
    before = unpacked.stat().st_mtime_ns
    (photos / "out.images" / ".unpacked.json").unlink()
    (photos / "out.images" / "images" / "coffee.png").write_bytes(b"half")
    assert pack(*command, "--overwrite") == 0 and samples(photos / "out") == samples(photos / "plain")
    assert unpacked.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["../outside.jpg", "images/../../outside.jpg"])
def test_an_archive_cannot_write_outside_its_folder(photos, capsys, name):
    write_jsonl(photos / "rows.jsonl", LIGHT)
    with tarfile.open(photos / "evil.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))
    assert pack(photos / "rows.jsonl", photos / "a" / "out", "--image_dir", photos / "evil.tar.gz") == 2
    assert "evil.tar.gz" in capsys.readouterr().err and not list(photos.rglob("outside.jpg"))


def test_links_in_an_archive_are_left_out(photos):
    write_jsonl(photos / "rows.jsonl", [LIGHT[0] | {"image": "link.jpg"}])
    with tarfile.open(photos / "links.tar", "w") as tar:
        info = tarfile.TarInfo("link.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    assert pack(photos / "rows.jsonl", photos / "out", "--image_dir", photos / "links.tar") == 1
    assert rejected(photos / "out")[0]["reason"].startswith("missing image")


@pytest.mark.parametrize("cut", [200, 60_000])
def test_a_broken_archive_is_named(photos, capsys, cut):
    write_jsonl(photos / "rows.jsonl", LIGHT)
    with tarfile.open(photos / "images.tar.gz", "w:gz") as tar:
        tar.add(photos / "images", "images")
    data = (photos / "images.tar.gz").read_bytes()
    (photos / "images.tar.gz").write_bytes(data[:cut])
    assert pack(photos / "rows.jsonl", photos / "out", "--image_dir", photos / "images.tar.gz") == 2
    error = capsys.readouterr().err
    assert "images.tar.gz" in error and error.count("\n") == 1


BROKEN = {
    "rows.parquet": (b"PAR1 no more", "no whole parquet"),
    "rows.json": (b'[{"question": "a"}, {"que', "not valid JSON"),
    "deep.json": (b'{"rows": []}', "COCO"),
    "rows.csv": (b"id,question\n1,a\n", "'answer' is missing"),
    "more.csv": (b"question,answer,picture\n", "'picture' is not known"),
    "rows.jsonl": (b"\n", "no row"),
    "rows.xlsx": (b"", "known are .parquet"),
    "odd.csv": (b"question,answer\n\xff\xfe,b\n", "no CSV"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_broken_as_a_whole_is_one_line(tmp_path, capsys, name):
    data, said = BROKEN[name]
    (tmp_path / name).write_bytes(data)
    assert pack(tmp_path / name, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert said in error and name in error and error.count("\n") == 1


def test_a_missing_source_is_named(tmp_path, capsys):
    assert pack(tmp_path / "none.parquet", tmp_path / "out") == 2
    assert "none.parquet" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bad_lines_are_rejected_by_number(tmp_path):
    good = {"question": "?", "answer": "!"}
    lines = [json.dumps(good), "{", "[]", "", json.dumps({"question": "\ud800", "answer": "a"})]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    assert pack(tmp_path / "rows.jsonl", tmp_path / "out") == 1
    assert [entry["row"] for entry in rejected(tmp_path / "out")] == [f"rows.jsonl:{n}" for n in (2, 3, 5)]
    assert len(samples(tmp_path / "out")) == 1


def test_bad_cells_are_rejected_by_number(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    text = 'id,question,answer,image,boxes\n1,"a ""b"", c\nd",2,,\n2,q,a,a.jpg,[1\n3,q,a\n'
    text += '4,q,a,a.jpg,"[[1,2,3,4.5]]"\n'
    (tmp_path / "rows.csv").write_text(text)
    assert pack(tmp_path / "rows.csv", tmp_path / "out") == 1
    first, last = samples(tmp_path / "out")
    assert (first.id, first.question, first.kind) == ("1", 'a "b", c\nd', "single")
    assert (last.id, last.boxes, last.kind) == ("4", ((1, 2, 3, 4.5),), "paired")
    assert [entry["row"] for entry in rejected(tmp_path / "out")] == ["rows.csv:2", "rows.csv:3"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.lists(json_values, max_size=6), st.integers(1, 9), st.sampled_from([None, 1]))
def test_a_json_array_is_read_in_pieces_of_any_size(tmp_path_factory, values, chunk, indent):
    """Against the json module, which reads it whole."""
    path = tmp_path_factory.mktemp("json") / "rows.json"
    path.write_text(json.dumps(values, indent=indent, ensure_ascii=False), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, path.open(encoding="utf-8") as file:
        patch.setattr(rows_module, "CHUNK", chunk)
        assert list(rows_module._elements(file)) == json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("text", ["[", "[1", "[1,", "[1 2]", "[1]]", "[1] x", "[1,]", "[,]", '[{"a": }]'])
def test_a_broken_array_is_refused(tmp_path, text):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(UserError, match="rows.json"):
        list(read_rows([tmp_path / "rows.json"]))
