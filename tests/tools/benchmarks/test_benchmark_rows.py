"""Benchmark files in the forms in which the field hands them out, read back row by row."""

import base64
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ivgr.core.errors import UserError
from ivgr.tools.benchmarks.benchmarks import BENCHMARKS
from ivgr.tools.benchmarks.find_files import find_files, open_rows
from support.benchmark_files import ABCD, ABCDE, ASK, BASE64, BOX, LISTED, PICTURES, TSV, write_tsv

STRUCTS = [{"bytes": picture, "path": None} for picture in PICTURES]


# The same as Hugging Face parquet: columns, and what must come out.
PARQUET = {
    "vstar": ({"text": f"{ASK}\n(A) red\n(B) green\n(C) blue\n(D) black\nAnswer with the letter directly.",
               "label": "C", "category": "direct_attributes", "question_id": "7"},
              ("C", ABCD, {"category": "direct_attributes"}, ())),
    "hrbench4k": ({"question": ASK, "answer": "B", **ABCD, "category": "single", "cycle_category": 2},
                  ("B", ABCD, {"category": "single", "cycle_category": "2"}, ())),
    "hrbench8k": ({"question": ASK, "answer": "B", **ABCD, "category": "single", "cycle_category": 3},
                  ("B", ABCD, {"category": "single", "cycle_category": "3"}, ())),
    "mme-realworld-lite": ({"question": ASK, "multi-choice options": LISTED, "answer": "E", "category": "x",
                            "l2-category": "y"}, ("E", ABCDE, {"category": "x", "l2-category": "y"}, ())),
    "pope": ({"question": ASK, "answer": "no", "category": "popular"},
             ("no", {}, {"category": "popular"}, ())),
    "realworldqa": ({"question": f"{ASK}\n\nA. red\nB. green\nC. blue\nD. black\nPlease answer directly with "
                     "only the letter of the correct option.", "answer": "D"}, ("D", ABCD, {}, ())),
    "cv-bench-2d": ({"question": ASK, "type": "2D", "choices": list(ABCD.values()), "answer": "(B)",
                     "task": "Relation", "source": "COCO"},
                    ("B", ABCD, {"task": "Relation", "source": "COCO"}, ())),
    "cv-bench-3d": ({"question": ASK, "type": "3D", "choices": list(ABCD.values()), "answer": "(A)",
                     "task": "Depth"}, ("A", ABCD, {"task": "Depth"}, ())),
    "treebench": ({"question": ASK, "multi-choice options": "A. red\nB. green\nC. blue\nD. black",
                   "answer": "A", "category": "c", "target_instances": json.dumps([{"bbox": BOX}])},
                  ("A", ABCD, {"category": "c"}, (tuple(BOX),))),
    "chartqa": ({"query": ASK, "label": ["0.57"], "human_or_machine": 1},
                ("0.57", {}, {"split": "1"}, ())),
    "ai2d": ({"question": ASK, "options": ["2", "1", "3", "0"], "answer": "2"},
             ("C", {"A": "2", "B": "1", "C": "3", "D": "0"}, {}, ())),
    "mmstar": ({"question": f"{ASK}\nOptions: A: red, B: green, C: blue, D: black", "answer": "C",
                "category": "c", "l2_category": "d"}, ("C", ABCD, {"category": "c", "l2-category": "d"}, ())),
    "mathvista": ({"question": ASK, "choices": list(ABCD.values()), "answer": "blue", "query": "Hint: …"},
                  ("C", ABCD, {}, ())),
    "refcoco": ({"question": ASK, "bbox": BOX, "bbox_x1": 1.0, "bbox_y1": 2.0, "bbox_x2": 3.0, "bbox_y2": 4.0,
                 "width": 9, "height": 8, "split": "RefCOCO_val"},
                ("[1.0, 2.0, 3.0, 4.0] of 9.0 x 8.0", {}, {"split": "RefCOCO_val"}, (tuple(BOX),))),
    "mmvp": ({"Question": ASK, "Options": "(a) Open (b) Closed", "Correct Answer": "(b)"},
             ("B", {"A": "Open", "B": "Closed"}, {}, ())),
    "blink": ({"question": ASK, "choices": list(ABCD.values()), "answer": "(D)", "category": "Depth"},
              ("D", ABCD, {"category": "Depth"}, ())),
    "zoombench": ({"question": ASK, "options": list(ABCD.values()), "answer": "B"}, ("B", ABCD, {}, ())),
    "visualprobe": ({"problem": f"<image>{ASK}", "solution": "12"}, ("12", {}, {}, ())),
}  # fmt: skip


def seen(row):
    """Its pair, which a file does not name, left out."""
    return row.gold, row.options, {k: v for k, v in row.groups.items() if k != "pair"}, row.boxes


def test_every_benchmark_has_both_fixtures():
    assert TSV.keys() == PARQUET.keys() == BENCHMARKS.keys()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_tsv(tmp_path, name):
    columns, expected = TSV[name]
    images = [BASE64[0], BASE64[1], "12", str(BASE64[:2]), "17"]  # one's own, another row's, a list
    rows = [
        {"index": str(12 + n), "question": f'{ASK}\nLook "well".', **columns, "image": image}
        for n, image in enumerate(images)
    ]
    rows.append({**rows[0], "index": "17", "image": BASE64[3]})  # what stands below is found too
    found = list(open_rows([write_tsv(tmp_path / "x.tsv", rows)], BENCHMARKS[name]).read(range(99)))
    before = "RefCOCO+_testA_" if name == "refcoco" else ""
    assert [row.index for row in found] == [f"{before}{12 + n}" for n in range(6)]
    assert all(seen(row) == expected and row.question == f'{ASK}\nLook "well".' for row in found)
    one, two, _, four = PICTURES
    assert [row.images for row in found] == [(one,), (two,), (one,), (one, two), (four,), (four,)]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_parquet(tmp_path, name):
    columns, expected = PARQUET[name]
    rows = [{**columns, "image": STRUCTS[n % 4], "id": str(n)} for n in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test-00000-of-00001.parquet")
    file = open_rows(find_files(tmp_path / "test-00000-of-00001.parquet", BENCHMARKS[name]), BENCHMARKS[name])
    found = list(file.read(range(99)))
    assert file.total == len(found) == 40
    assert all(seen(row) == expected for row in found)
    before = "RefCOCO_val_" if name == "refcoco" else ""
    assert [row.index for row in found] == [f"{before}{n}" for n in range(40)]
    assert [row.images for row in found] == [(PICTURES[n % 4],) for n in range(40)]
    assert [row.index for row in file.read(range(33, 41))] == [f"{before}{n}" for n in range(33, 40)]


@pytest.mark.parametrize(("column", "cells"), [
    ("image", BASE64), ("image", PICTURES), ("bytes", PICTURES), ("images", [[one] for one in STRUCTS]),
    ("image", ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]),
    ("image", [{"bytes": None, "path": f"{n}.jpg"} for n in range(4)]),
])  # fmt: skip
def test_images_of_a_parquet(tmp_path, column, cells):
    for n, picture in enumerate(PICTURES):
        (tmp_path / f"{n}.jpg").write_bytes(picture)
    rows = [{**PARQUET["pope"][0], column: cell} for cell in cells]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "POPE.parquet")
    file = open_rows(find_files(tmp_path, BENCHMARKS["pope"]), BENCHMARKS["pope"])
    assert [row.images for row in file.read(range(4))] == [(picture,) for picture in PICTURES]


def test_a_column_per_picture(tmp_path):
    plain = {"question": ASK, "choices": list(ABCD.values()), "answer": "(D)", "sub_task": "Jigsaw"}
    rows = [
        {**plain, "idx": f"val_{n}", "image_1": STRUCTS[n], "image_2": STRUCTS[3] if n else None}
        for n in range(2)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "BLINK.parquet")
    file = open_rows(find_files(tmp_path, BENCHMARKS["blink"]), BENCHMARKS["blink"])
    found = list(file.read(range(2)))
    assert [row.images for row in found] == [(PICTURES[0],), (PICTURES[1], PICTURES[3])]
    assert {row.groups["category"] for row in found} == {"Jigsaw"} and found[0].index == "val_0"
    assert all(not name.startswith("image") for values in file.columns() for name in values)


def test_paths_beside_a_tsv_and_rows_in_the_middle(tmp_path):
    for n, picture in enumerate(PICTURES):
        (tmp_path / f"{n}.jpg").write_bytes(picture)
    rows = [{"index": n, "question": ASK, "answer": "Yes", "image_path": f"{n}.jpg"} for n in range(4)]
    rows[3]["image_path"] = "['3.jpg', '0.jpg']"
    file = open_rows([write_tsv(tmp_path / "POPE.tsv", rows)], BENCHMARKS["pope"])
    assert [row.images for row in file.read({2, 3})] == [(PICTURES[2],), (PICTURES[3], PICTURES[0])]


def test_two_benchmarks_in_one_file_and_ids_that_repeat(tmp_path):
    rows = [
        {
            **PARQUET[f"cv-bench-{kind}d"][0],
            "type": f"{kind}D",
            "image": STRUCTS[0],
            "source": "s",
            "idx": n // 6,
        }
        for n, kind in enumerate("2332223")
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "CV-Bench.parquet")
    for name, count in (("cv-bench-2d", 4), ("cv-bench-3d", 3)):
        file = open_rows(find_files(tmp_path, BENCHMARKS[name]), BENCHMARKS[name])
        assert file.total == count and [row.index for row in file.read(range(99))] == [
            str(n) for n in range(count)
        ]


def test_memory_does_not_grow_with_the_file(tmp_path):
    big = base64.b64encode(bytes(200_000)).decode()

    def peak(count):
        rows = [
            {"index": n, "question": ASK, "answer": "Yes", "image": big if n % 3 else "1"}
            for n in range(count)
        ]
        path = write_tsv(tmp_path / f"{count}.tsv", rows)
        tracemalloc.start()
        file = open_rows([path], BENCHMARKS["pope"])
        assert sum(len(row.images[0]) for row in file.read(range(99))) == 200_000 * count
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(60) < 1.3 * peak(12) and peak(60) < 30 * len(big)


def test_files_are_found_by_their_usual_names(tmp_path):
    names = {
        "vstar": "VStarBench.tsv", "hrbench4k": "hr_bench_4k.tsv", "hrbench8k": "HRBench8K.tsv",
        "mme-realworld-lite": "mme_realworld_lite.tsv", "pope": "POPE.tsv", "realworldqa": "RealWorldQA.tsv",
        "cv-bench-2d": "CV-Bench-2D.tsv", "cv-bench-3d": "CV-Bench-3D.tsv", "treebench": "TreeBench.tsv",
        "chartqa": "ChartQA_TEST.tsv", "ai2d": "AI2D_TEST.tsv", "mmstar": "MMStar.tsv",
        "mathvista": "MathVista_MINI.tsv", "refcoco": "RefCOCO.tsv", "mmvp": "MMVP.tsv", "blink": "BLINK.tsv",
        "zoombench": "ZoomBench.tsv", "visualprobe": "VisualProbe.json",
    }  # fmt: skip
    for file in names.values():
        (tmp_path / file).touch()
    for name, file in names.items():
        assert find_files(tmp_path, BENCHMARKS[name]) == [tmp_path / file]
    folder = tmp_path / "hub" / "RealworldQA" / "data"
    folder.mkdir(parents=True)
    parts = [folder / f"test-0000{n}-of-00002.parquet" for n in range(2)]
    for part in parts:
        part.touch()
    assert find_files(tmp_path / "hub", BENCHMARKS["realworldqa"]) == parts


GOOD = {"index": "1", "question": ASK, **ABCD, "answer": "A", "image": BASE64[0]}


@pytest.mark.parametrize(("change", "message"), [
    ({"answer": "E"}, "row 1: answer 'E' is none of its options A, B, C, D"),
    ({"question": ""}, "row 1: no question"),
    ({"answer": ""}, "row 1: no answer"), ({"image": ""}, "row 1: no image"),
    ({"image": "99"}, "row 1: its image is that of row '99'"),
    ({"target_instances": "[[1, 2]]"}, "row 1: boxes"),
    (dict.fromkeys("ABCD", ""), "row 1: no options"),
])  # fmt: skip
def test_a_broken_row_is_named(tmp_path, change, message):
    path = write_tsv(tmp_path / "VStar.tsv", [{**GOOD, **change}])
    with pytest.raises(UserError, match="VStar.tsv") as error:
        open_rows([path], BENCHMARKS["vstar"])
    assert message in str(error.value) and "\n" not in str(error.value)


BAD = [
    {"answer": "C", "C": ""}, {"answer": ""}, {"question": ""}, {"answer": "red", "B": "red"},
    {"A": "", "answer": "A"}, {"image": "77"}, {"image": ""}, {"image": "", "image_path": "a\0b.jpg"},
    {"image": "", "image_path": "no/such.jpg"}, {"image": "", "image_path": "."},
    {"target_instances": "[" * 50_000}, {"target_instances": "{" * 50_000}, {"target_instances": "7"},
    {"options": "[" * 50_000, **dict.fromkeys("ABCD", "")}, {"answer": "9" * 5000},
    {"options": "['a'", **dict.fromkeys("ABCD", "")}, {"target_instances": "[[1, 2, 3, nan]]"[:9]},
]  # fmt: skip


def test_one_bad_row_stops_no_other(tmp_path):
    rows = [{**GOOD, "target_instances": "", "options": "", "image_path": "", "index": n} for n in range(20)]
    rows = [{**row, **bad} for row, bad in zip(rows, [*BAD, {}, {}, {}], strict=True)]
    path = write_tsv(tmp_path / "VStar.tsv", rows)
    file = open_rows([path], BENCHMARKS["vstar"])
    assert file.total == 20 and [row.index for row in file.texts()] == [str(n) for n in range(20)]
    found = list(file.read(range(99)))
    assert [bool(row.fault) for row in found] == [True] * len(BAD) + [False] * 3
    for number, row in enumerate(found[: len(BAD)], 1):
        assert row.fault.startswith(f"row {number}: ") and "\n" not in row.fault and len(row.fault) < 200


def test_indices_of_thousands_of_digits_are_texts(tmp_path):
    rows = [{**GOOD, "index": "9" * 5000 + str(n)} for n in range(3)]
    file = open_rows([write_tsv(tmp_path / "VStar.tsv", rows)], BENCHMARKS["vstar"])
    assert [row.index for row in file.read(range(3))] == [row["index"] for row in rows]
    file = open_rows([write_tsv(tmp_path / "ai2d.tsv", rows)], BENCHMARKS["ai2d"])
    assert [row.gold for row in file.texts()] == ["A"] * 3


STRANGE = [
    ({"question": 7}, ""), ({"question": {"a": 1}}, "its question is no text but dict"),
    ({"question": [["x"]]}, "its question is no text but list"),
    ({"answer": {"b": 2}}, "its answer is no text"),
    ({"options": 7}, "its options '7' are no list"), ({"image": 7}, "its image is no image but int"),
    ({"image": [7]}, "its image is no image but int"), ({"image": {"path": "a\0b"}}, "its image"),
    ({"image": {"bytes": None, "path": 5}}, "its image is no image but int"), ({"bbox": {"x": 1}}, "boxes"),
    ({"bbox": 3}, "boxes"), ({"bbox": [[1, 2, 3, "x"]]}, "boxes"), ({"category": [1, {"a": 2}]}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), STRANGE)
def test_values_of_another_type_are_a_fault_of_their_row(tmp_path, change, message):
    plain = {"question": ASK, "options": list(ABCD.values()), "answer": "A", "image": BASE64[0]}
    (tmp_path / "vstar.json").write_text(json.dumps([{**plain, **change}, plain]))
    bad, good = open_rows(find_files(tmp_path, BENCHMARKS["vstar"]), BENCHMARKS["vstar"]).read(range(9))
    assert message in bad.fault and bool(bad.fault) == bool(message) and not good.fault


@pytest.mark.parametrize("change", [
    {"question": 7}, {"answer": 3.5}, {"question": {"a": 1}}, {"answer": {"b": 2}}, {"image": 7},
    {"image": {"bytes": 5}}, {"image": [{"path": 5}]}, {"options": 7}, {"bbox": {"x": 1}}, {"bbox": 3.0},
    {"index": {"a": [1]}}, {"category": {"a": 1}},
])  # fmt: skip
def test_no_type_of_a_parquet_breaks_it(tmp_path, change):
    plain = {"question": ASK, "options": list(ABCD.values()), "answer": "A", "image": BASE64[0]}
    path = tmp_path / "VStar.parquet"
    pq.write_table(pa.Table.from_pylist([{**plain, **change}] * 2), path)
    try:
        rows = list(open_rows([path], BENCHMARKS["vstar"]).read(range(9)))
    except UserError as error:
        assert "VStar.parquet: row 1" in str(error) and "can be asked" in str(error)
    else:
        assert len(rows) == 2


def test_a_json_list_is_read_and_another_is_refused(tmp_path):
    (tmp_path / "p.jpg").write_bytes(PICTURES[1])
    row = {"problem": f"<image>{ASK}", "solution": "12", "images": ["p.jpg"]}
    rows = [{**row, "doc_id": f"d{n}"} for n in range(3)]
    (tmp_path / "VisualProbe_Hard.json").write_text(json.dumps(rows))
    benchmark = BENCHMARKS["visualprobe"]
    file = open_rows(find_files(tmp_path, benchmark), benchmark)
    assert [(row.index, row.gold, row.question, row.images) for row in file.read(range(3))] == [
        (f"d{n}", "12", ASK, (PICTURES[1],)) for n in range(3)
    ]
    for text in ("{}", "[1]", "[" * 100_000, '[{"a": ' + "9" * 5000 + "}]", "[", "[]"):
        (tmp_path / "VisualProbe_Hard.json").write_text(text)
        with pytest.raises(UserError, match=r"VisualProbe_Hard.json: ") as error:
            open_rows(find_files(tmp_path, benchmark), benchmark)
        assert "\n" not in str(error.value)


def test_broken_files_are_named(tmp_path):
    vstar = BENCHMARKS["vstar"]
    for name, content in (("a.tsv", b"index\tquestion\n1\n"), ("b.tsv", b'index\n"1'), ("c.tsv", b"index\n"),
                          ("d.tsv", b"\xff\xfe\x00"), ("e.parquet", b"PAR1")):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            open_rows(find_files(tmp_path / name, vstar), vstar)
    for data, message in ((tmp_path / "no", "nothing there"), (tmp_path, "no .tsv, .parquet or .json of V")):
        with pytest.raises(UserError, match=message):
            find_files(data, vstar)
    for name in ("vstar.tsv", "vstar_b.parquet"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="may all be"):
        find_files(tmp_path, vstar)
