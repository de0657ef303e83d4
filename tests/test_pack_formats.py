"""The same rows from every format are the same samples; COCO's questions have computable answers."""

import csv
import io
import json
import random
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import jpeg
from hypothesis import given
from hypothesis import strategies as st
from published import BY_HAND, PHOTOS, write_published
from test_pack import admit, pack, rejected, samples

from ivgr.errors import UserError
from ivgr.pack import rows as rows_module
from ivgr.pack.convert import Rejected, convert_row, kind_of, place_markers, read_options
from ivgr.pack.rows import read_rows

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


@pytest.mark.parametrize(
    ("question", "images", "placed"),
    [
        ("<image>\nWhat?", 1, "What?"),
        ("What?\n<image>", 1, "What?"),
        ("<image><image>\n\nCompare.", 2, "Compare."),
        ("Compare <image> with <image>.", 2, "Compare image 1 with image 2."),
        ("<image> Is it as in <image>?", 2, "Is it as in image 2?"),
        ("What?", 2, "What?"),
        ("What?", 0, "What?"),
    ],
)
def test_image_markers(question, images, placed):
    assert place_markers(question, images) == placed


@pytest.mark.parametrize(("question", "images"), [("<image> a", 0), ("<image> a", 2)])
def test_markers_that_do_not_fit_the_images(question, images):
    with pytest.raises(Rejected, match="image markers"):
        place_markers(question, images)


@pytest.mark.parametrize("layout", ["{q}\nA. a dog\nB. a cat\nC. 3.5 m", "{q} (A) a dog (B) a cat (C) 3.5 m"])
def test_options_are_read_off_the_question(layout):
    assert read_options(layout.format(q="What is it?")) == {"A": "a dog", "B": "a cat", "C": "3.5 m"}


@pytest.mark.parametrize("question", ["Is A. Smith here?", "B. one\nC. two", "A. one\nC. three", "What?"])
def test_no_options_are_made_up(question):
    assert read_options(question) == {}


OPTIONS = "What?\nA. a dog\nB. a cat"


@pytest.mark.parametrize(
    ("row", "check", "answer"),
    [
        ({"problem": OPTIONS, "answer": "B"}, "choice", "B"),
        ({"problem": OPTIONS, "answer": "(B)"}, "choice", "B"),
        ({"problem": OPTIONS, "answer": "B. a cat"}, "choice", "B"),
        ({"problem": OPTIONS, "answer": "A cat"}, "choice", "B"),
        ({"problem": OPTIONS, "answer": "a bird"}, "text", "a bird"),
        ({"problem": "What?", "answer": "B"}, "text", "B"),
        ({"problem": "x?", "answer": "\\frac{1}{2}", "question_type": "math"}, "math", "\\frac{1}{2}"),
        ({"problem": "x?", "answer": "yes", "question_type": "math"}, "text", "yes"),
        ({"problem": "x?", "answer": "3", "datasource": "ours_mmk12"}, "math", "3"),
        ({"problem": "x?", "answer": "1,250.5%", "question_type": "chart_analysis"}, "math", "1,250.5%"),
        ({"problem": "x?", "answer": "2005-2010", "question_type": "chart_analysis"}, "text", "2005-2010"),
        ({"problem": "x?", "answer": "3", "question_type": "general_vqa"}, "text", "3"),
        ({"question": "x?", "answer": 3, "check": "math"}, "math", "3"),
        ({"question": "x?", "answer": "dog", "options": ["cat", "dog"]}, "choice", "B"),
    ],
)
def test_the_check_follows_from_the_row(row, check, answer):
    fields = convert_row(row).fields
    assert (fields["check"], fields["answer"]) == (check, answer)


OURS = ("arxivqa", "mmk12", "thinklite", "tqa", "virl", "wemath_pro", "wemath_std", "docqa", "infoqa")


@pytest.mark.parametrize("source", OURS)
def test_published_sources_without_boxes_are_single(source):
    assert kind_of({"datasource": f"ours_{source}", "target_instances": []}) == "single"


def test_the_kind_follows_from_the_row():
    box = [{"bbox": [0, 0, 1, 1]}]
    assert kind_of({"datasource": "treevgr", "target_instances": []}) == "paired"
    assert kind_of({"datasource": "other", "target_instances": box}) == "paired"
    assert kind_of({"datasource": "other"}) == "single"
    assert kind_of({"kind": "single", "boxes": [[0, 0, 1, 1]]}) == "single"


def test_several_images_keep_their_order(tmp_path):
    for index, color in enumerate([(250, 0, 0), (0, 250, 0)]):
        (tmp_path / f"{index}.jpg").write_bytes(jpeg(color, (64, 64)))
    row = {"question": "<image><image>Which?", "answer": "1", "images": ["1.jpg", "0.jpg"]}
    verdict = admit(tmp_path, **row, boxes=[[0, 0, 9, 9]])
    assert verdict.sample.images == tuple((tmp_path / f"{i}.jpg").read_bytes() for i in (1, 0))


def coco(tmp_path, count=30):
    """Squares of three categories on 200 x 100 images, and the truth about them by image and name."""
    rng = random.Random(0)
    names = {1: "cat", 2: "dog", 7: "traffic light"}
    images, annotations, truth = [], [], {}
    for key in range(count):
        name = f"{key:04d}.jpg"
        (tmp_path / name).write_bytes(jpeg((key, 9, 9), (200, 100)))
        images.append({"id": key, "file_name": name, "width": 200, "height": 100})
        for category in names:
            for _ in range(rng.choice([0, 1, 1, 3])):
                box = [rng.randrange(150), rng.randrange(60), rng.randrange(5, 50), rng.randrange(5, 40)]
                entry = {"id": len(annotations), "image_id": key, "category_id": category, "bbox": box}
                annotations.append(entry | {"iscrowd": 0})
                corners = (box[0], box[1], box[0] + box[2], box[1] + box[3])
                truth.setdefault((name, names[category]), []).append(corners)
    categories = [{"id": key, "name": name} for key, name in names.items()]
    return {"images": images, "annotations": annotations, "categories": categories}, truth


def test_cocos_questions_are_answered_by_its_boxes(tmp_path):
    content, truth = coco(tmp_path)
    (tmp_path / "coco.json").write_text(json.dumps(content))
    assert pack(tmp_path / "coco.json", tmp_path / "out") == 0
    found = samples(tmp_path / "out")
    wordings = Counter()
    for sample in found:
        name, kind, asked = sample.id.split(":")
        words = asked.split("+")
        boxes = [truth.get((name, word), []) for word in words]
        assert sample.boxes == tuple(box for some in boxes for box in some)
        assert all(word in sample.question for word in words)
        wordings[kind, sample.question.replace(words[0], "X").replace(words[-1], "Y")] += 1
        (x1, y1, x2, y2), *_ = boxes[0] or [(0, 0, 0, 0)]
        if kind == "where":
            row, column = sample.answer.split()
            assert ["upper", "middle", "lower"].index(row) == int((y1 + y2) / 2 / 100 * 3)
            assert ["left", "center", "right"].index(column) == int((x1 + x2) / 2 / 200 * 3)
        elif kind == "side":
            assert len(boxes[0]) == len(boxes[1]) == 1
            assert x2 <= boxes[1][0][0] if sample.answer == "left" else x1 >= boxes[1][0][2]
        else:
            assert sample.answer == {"count": str(len(boxes[0])), "present": "yes", "absent": "no"}[kind]
            assert (kind == "absent") == (not boxes[0]) == (sample.kind == "single")
    kinds = {kind for kind, _ in wordings}
    assert kinds == {"count", "present", "absent", "where", "side"}
    assert all(len([w for w in wordings if w[0] == kind]) > 1 for kind in kinds)


def test_cocos_questions_outlive_filtering(tmp_path):
    content, _ = coco(tmp_path)
    (tmp_path / "all.json").write_text(json.dumps(content))
    kept = {image["id"] for image in content["images"][::3]}
    half = {
        "images": [image for image in content["images"] if image["id"] in kept],
        "annotations": [entry for entry in content["annotations"] if entry["image_id"] in kept],
        "categories": content["categories"][::-1],
    }
    (tmp_path / "half.json").write_text(json.dumps(half))
    assert (
        pack(tmp_path / "all.json", tmp_path / "a") == 0 and pack(tmp_path / "half.json", tmp_path / "b") == 0
    )
    everything = {sample.id: sample for sample in samples(tmp_path / "a")}
    some = samples(tmp_path / "b")
    assert some and all(everything[sample.id] == sample for sample in some)


def test_what_coco_does_not_know_is_not_asked(tmp_path):
    """A crowd or an unusable box leaves the count unknown, and neither is the thing absent."""
    content, _ = coco(tmp_path, 1)
    content["annotations"] = [
        {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 0, 5]},
        {"id": 2, "image_id": 0, "category_id": 2, "bbox": [1, 1, 9, 9], "iscrowd": 1},
        {"id": 3, "image_id": 0, "category_id": 9, "bbox": [1, 1, 9, 9]},
        {"id": 4, "image_id": 5, "category_id": 1, "bbox": [1, 1, 9, 9]},
        [],
    ]
    (tmp_path / "coco.json").write_text(json.dumps(content))
    assert pack(tmp_path / "coco.json", tmp_path / "out") == 1
    assert [s.id for s in samples(tmp_path / "out")] == ["0000.jpg:absent:traffic light"]
    said = [entry["reason"] for entry in rejected(tmp_path / "out")]
    assert len(said) == 4 and all(word in " ".join(said) for word in ("area", "category_id 9", "image_id 5"))
