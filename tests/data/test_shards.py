import bz2
import gzip
import io
import json
import lzma
import tarfile
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ivgr.core.errors import UserError
from ivgr.core.sample import Sample, read_sample
from ivgr.data.shards import find_shards, read_samples, read_shards, validate_shards, write_shards
from support.samples import encode_image, make_sample

words = st.text(st.characters(codec="utf-8"), max_size=8)
said = words.filter(str.strip)
spans = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=2, unique=True).map(sorted)
gold_boxes = st.builds(lambda x, y: (x[0], y[0], x[1], y[1]), spans, spans)


@st.composite
def samples(draw) -> Sample:
    boxes = draw(st.lists(gold_boxes, max_size=3))
    return Sample(
        id=draw(said),
        question=draw(said),
        answer=draw(said),
        kind=draw(st.sampled_from(["paired", "single"])) if boxes else "single",
        check=draw(st.sampled_from(["text", "math"])),
        source=draw(words),
        boxes=tuple(boxes),
        labels=tuple(draw(st.sampled_from([[], ["thing"] * len(boxes)]))),
        options=draw(st.dictionaries(words, words, max_size=3)),
        reasoning=draw(st.dictionaries(st.sampled_from(["grounded", "textual"]), words)),
        images=tuple(draw(st.lists(st.binary(max_size=5), min_size=bool(boxes), max_size=13))),
    )


def some(count: int, kind: str = "single") -> list[Sample]:
    return [make_sample(f"{kind}{i}", kind=kind, images=(b"image %d" % i,)) for i in range(count)]


def ids(shards: list) -> list[str]:
    return [read_sample(entry).id for entry in read_shards(list(map(str, shards)))]


def write_tar(path: Path, **files: bytes) -> str:
    """A tar of files key_suffix="…" named key.suffix."""
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


@settings(deadline=None, max_examples=40)
@given(st.lists(samples(), min_size=1, max_size=5), st.integers(1, 3))
def test_what_is_written_is_read_back(written, per_shard):
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder), "train", written, per_shard)
        assert [read_sample(entry) for entry in read_shards(list(map(str, shards)))] == written


def test_shards_are_numbered_and_filled_in_order(tmp_path):
    shards = write_shards(tmp_path / "new" / "folder", "train", some(5), 2)
    names = ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    assert [path.name for path in shards] == names
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == names
    assert [ids([path]) for path in shards] == [["single0", "single1"], ["single2", "single3"], ["single4"]]


def test_a_shard_is_an_ordinary_tar_of_the_schema(tmp_path):
    one, two = make_sample("one"), make_sample("two", images=(b"first", b"second"))
    [shard] = write_shards(tmp_path, "train", [one, two], 10)
    with tarfile.open(shard) as tar:
        files = {name: tar.extractfile(name).read() for name in tar.getnames()}
    first, second = sorted({name.split(".")[0] for name in files})
    assert files[f"{first}.jpg"] == one.images[0]
    assert (files[f"{second}.0.jpg"], files[f"{second}.1.jpg"]) == (b"first", b"second")
    assert json.loads(files[f"{first}.json"])["boxes"] == [list(box) for box in one.boxes]


def test_two_writes_are_byte_identical(tmp_path, monkeypatch):
    first = write_shards(tmp_path / "a", "train", some(5), 2)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e6)
    second = write_shards(tmp_path / "b", "train", some(5), 2)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_shard_shows_under_its_name_only_when_whole(tmp_path):
    seen = []

    def watched():
        for sample in some(6):
            seen.append([ids([path]) for path in sorted(tmp_path.glob("*.tar"))])
            yield sample

    write_shards(tmp_path, "train", watched(), 2)
    one, two = ["single0", "single1"], ["single2", "single3"]
    assert all(shards in ([], [one], [one, two]) for shards in seen)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_broken_off_write_leaves_only_whole_shards(tmp_path):
    def breaking():
        yield from some(3)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_shards(tmp_path, "train", breaking(), 2)
    assert ids(find_shards(str(tmp_path))) == ["single0", "single1"]


@pytest.mark.parametrize("pattern", ["", "train-*.tar", "train-00000?.tar", "train-{000000..000002}.tar"])
def test_shards_are_found_by_folder_glob_and_brace(tmp_path, pattern):
    shards = write_shards(tmp_path, "train", some(3), 1)
    (tmp_path / "train-000003.tar.part").touch()
    (tmp_path / "world.json").touch()
    assert find_shards(str(tmp_path / pattern)) == sorted(map(str, shards))


def test_a_shard_named_twice_is_found_once(tmp_path):
    shards = write_shards(tmp_path, "train", some(2), 1)
    both = f"{tmp_path}/{{train-*.tar,train-000000.tar}}"
    assert find_shards(both) == sorted(map(str, shards))
    assert find_shards(str(shards[1])) == [str(shards[1])]


def test_a_glob_may_span_folders(tmp_path):
    for folder in ("a", "b"):
        write_shards(tmp_path / folder, "train", some(1), 1)
    expected = [str(tmp_path / folder / "train-000000.tar") for folder in ("a", "b")]
    assert find_shards(str(tmp_path / "*" / "train-*.tar")) == expected


@pytest.mark.parametrize(
    "pattern", ["", "none-*.tar", "none.tar", "no/folder/*.tar", "x-{0..3}.tar", "x-{0.."]
)
def test_a_pattern_without_a_shard_is_named(tmp_path, pattern):
    with pytest.raises(UserError) as caught:
        find_shards(f"{tmp_path}/{pattern}")
    assert f"{tmp_path}/{pattern}" in str(caught.value) and "\n" not in str(caught.value)


def test_a_shard_missing_from_a_brace_range_is_named(tmp_path):
    write_shards(tmp_path, "train", some(3), 1)[1].unlink()
    with pytest.raises(UserError, match="train-000001.tar"):
        find_shards(str(tmp_path / "train-{000000..000002}.tar"))


def test_stock_counts_the_samples_of_each_kind(tmp_path):
    shards = write_shards(tmp_path, "train", some(5) + some(3, "paired"), 3)
    assert dict(validate_shards(list(map(str, shards)))) == {"single": 5, "paired": 3}


def test_a_kind_that_is_absent_counts_zero(tmp_path):
    stock = validate_shards([str(path) for path in write_shards(tmp_path, "train", some(2), 2)])
    assert stock["paired"] == 0


def test_stock_names_shard_and_key_of_a_broken_sample(tmp_path):
    good = json.dumps({"id": "s0", "question": "What?", "answer": "red", "kind": "single"}).encode()
    path = write_tar(tmp_path / "train-000000.tar", k0_json=good, k1_json=good.replace(b'"red"', b"5"))
    with pytest.raises(UserError, match=r'train-000000\.tar: k1: "answer"'):
        validate_shards([path])


def test_stock_names_shards_without_a_sample(tmp_path):
    with pytest.raises(UserError, match="train-000000.tar"):
        validate_shards([write_tar(tmp_path / "train-000000.tar")])


@pytest.mark.parametrize("size", [0, 100, 515, 600, 1500, 1540])
def test_stock_names_a_shard_that_was_cut_short(tmp_path, size):
    good, bad = write_shards(tmp_path, "train", some(4), 2)
    bad.write_bytes(bad.read_bytes()[:size])
    with pytest.raises(UserError, match="train-000001.tar"):
        validate_shards([str(good), str(bad)])


def test_stock_names_a_file_that_is_no_tar(tmp_path):
    good, bad = write_shards(tmp_path, "train", some(4), 2)
    bad.write_bytes(b"garbage" * 300)
    with pytest.raises(UserError, match="train-000001.tar"):
        validate_shards([str(good), str(bad)])


def test_stock_names_a_shard_that_holds_a_file_twice(tmp_path):
    [shard] = write_shards(tmp_path, "train", some(1), 1)
    with tarfile.open(shard, "a") as tar:
        tar.addfile(tarfile.TarInfo(tar.getnames()[0]), io.BytesIO())
    with pytest.raises(UserError, match="train-000000.tar"):
        validate_shards([str(shard)])


def test_images_are_named_by_what_they_are(tmp_path):

    picture = Image.new("RGB", (8, 8), (10, 200, 30))
    images = tuple(encode_image(picture, kind) for kind in ("PNG", "JPEG", "WEBP"))
    [shard] = write_shards(tmp_path, "train", [make_sample(images=images)], 1)
    with tarfile.open(shard) as tar:
        assert [name.split(".", 1)[1] for name in tar.getnames()] == ["0.png", "1.jpg", "2.webp", "json"]
    [entry] = read_shards([str(shard)])
    assert read_sample(entry).images == images


def test_samples_before_the_cut_are_used_and_the_rest_is_one_rejection(tmp_path):
    """Wherever the tar ends, down to the byte: the whole samples but the last, which may lack
    a file, then one rejection."""
    [shard] = write_shards(tmp_path, "train", some(4), 4)
    whole = shard.read_bytes()
    starts = [whole.index(f"{index:08d}.".encode()) for index in range(4)]
    for size in range(0, 8 * 1024 + 1, 64):
        shard.write_bytes(whole[:size])
        found = list(read_samples([str(shard)]))
        begun = sum(start + 512 <= size for start in starts)  # headers that are there in full
        assert [item.sample.id for item in found[:-1]] == [f"single{i}" for i in range(max(begun - 1, 0))]
        assert found[-1].reason == "shard: truncated"


def test_a_damaged_header_is_no_end(tmp_path):
    [shard] = write_shards(tmp_path, "train", some(4), 4)
    data = bytearray(shard.read_bytes())
    start = data.index(b"00000002.")
    data[start : start + 4] = b"9999"
    shard.write_bytes(data)
    one, rejection = read_samples([str(shard)])
    assert one.sample.id == "single0" and rejection.reason == "shard: not a tar"


def test_a_compressed_shard_is_read(tmp_path):
    [shard] = write_shards(tmp_path, "train", some(3), 3)
    for name, compress in (("a.tar", gzip.compress), ("b.tar", bz2.compress), ("c.tar", lzma.compress)):
        (tmp_path / name).write_bytes(compress(shard.read_bytes()))
        assert ids([tmp_path / name]) == ["single0", "single1", "single2"]


def test_a_sparse_file_of_a_terabyte_is_not_unpacked(tmp_path):
    info = tarfile.TarInfo("k0.jpg")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = tarfile.itn(2**40, 12, tarfile.GNU_FORMAT)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "train-000000.tar"
    path.write_bytes(bytes(header) + bytes(10240))
    [rejection] = read_samples([str(path)])
    assert rejection.reason == "shard: oversized file"


def test_stock_leaves_out_a_few_broken_samples_and_lists_many_by_reason(tmp_path):
    good = json.dumps({"id": "s0", "question": "What?", "answer": "red", "kind": "single"}).encode()
    files = {f"k{i}_json": good for i in range(98)}
    path = tmp_path / "train-000000.tar"
    assert validate_shards([write_tar(path, **files, x_json=b"{")], max_rejected=0.02) == {"single": 98}
    two = write_tar(path, **files, x_json=b"{", y_json=good.replace(b'"red"', b'""'))
    assert validate_shards([two], max_rejected=0.02) == {"single": 98}
    with pytest.raises(UserError, match=r"2 of 100 .*json: invalid 1, answer: empty 1.*max_rejected 0\.01"):
        validate_shards([two], max_rejected=0.01)
