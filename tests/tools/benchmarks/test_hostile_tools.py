"""Whatever a file holds that a tool is given: what cannot be used is a line or a counted reason, nothing
in it is run, and nothing of it reaches the terminal as a command."""

import csv
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ivgr.cli.main import main
from ivgr.core.errors import UserError
from ivgr.data.shards import find_shards, validate_shards, write_shards
from ivgr.rewards.archive import Archive
from ivgr.tools.benchmarks.benchmarks import BENCHMARKS
from ivgr.tools.benchmarks.find_files import open_rows
from ivgr.tools.inference.modes import Reply
from ivgr.tools.packing_data.admit import admit_row
from ivgr.tools.packing_data.source_rows import read_rows
from support.harmless import harmless
from support.hostile import HOSTILE, NASTY, picture, write_tar
from support.packing import rejected, samples
from support.samples import encode_image, jpeg, make_query, make_rollout, make_sample, response

DEEP = "[" * 900 + "]" * 900
LONG = ("9" * 5000, "[" * 100_000, DEEP, "pipe.jpg", "zero.jpg")
# Texts and values that stand where any other is expected.
VALUES = [
    *NASTY, "", "\0", "\ud800", "9" * 5000, 10**400, -(10**400), -1, 1.5, float("nan"), float("inf"), True,
    None, [], {}, [[]], {"a": {"b": [1]}}, [1, "x", None], [NASTY[0]], {"bytes": 5, "path": ["x"]},
    json.loads(DEEP), "/etc/passwd", "../../../etc/passwd", "pipe.jpg", "zero.jpg", "a\0b.jpg", "x" * 5000,
    "data:image/png;base64,AAAA", [[0, 0, 10**400, 1]], [[0, 0, float("nan"), 9]], list(range(100)),
    {"bbox": [10**400] * 4}, {"bbox": None}, {"A": NASTY[7], "B": "["},
]  # fmt: skip
FIELDS = (
    "id", "question", "problem", "answer", "image", "images", "boxes", "target_instances", "kind", "check",
    "labels", "options", "reasoning", "source", "datasource", "question_type",
)  # fmt: skip


@pytest.fixture(autouse=True)
def within(tmp_path, monkeypatch):
    """In an empty folder, where what was run would leave a file; beside a pipe and a device."""
    monkeypatch.chdir(tmp_path)
    Path("good.jpg").write_bytes(encode_image(picture()))
    os.mkfifo("pipe.jpg")
    Path("zero.jpg").symlink_to("/dev/zero")
    yield
    assert not Path("pwned").exists()


def call(capsys, *words) -> tuple[int, str]:
    """The exit code of a tool, and what it printed, which is harmless; where it fails, one line."""
    try:
        main(list(map(str, words)))
        code = 0
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    harmless(out + err)
    assert code in (0, 1) or (code == 2 and err.startswith("ivgr: error: ") and err.count("\n") == 1)
    return code, out + err


def hostile_rows() -> list[dict]:
    good = {"question": "What color is it?", "answer": "red", "image": "good.jpg", "boxes": [[5, 5, 40, 30]]}
    return [
        good | {"id": f"{name} {number}", name: value}
        for name in FIELDS
        for number, value in enumerate(VALUES)
    ]


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_pack_takes_or_counts_every_row(capsys, form):
    rows = hostile_rows()
    lines = list(map(json.dumps, rows))
    if form == "jsonl":
        number = b"9" * 5000
        broken = [b"[" * 100_000, b'{"a":' * 50_000, number, b"\xff\xfe\0", b'{"id": %s}' % number]
        Path("rows.jsonl").write_bytes("\n".join(lines).encode() + b"\n" + b"\n".join(broken))
    else:
        broken = []
        Path("rows.json").write_text(f"[{','.join(lines)}]")
    code, _said = call(capsys, "pack", f"rows.{form}", "out", "--workers", 2)
    assert code == 1
    kept, left = samples("out"), rejected("out")
    assert len(kept) + len(left) == len(rows) + len(broken) and len(kept) > 100
    assert len({row["row"] for row in left}) == len(left)
    assert all(len(row["reason"]) <= 300 and harmless(row["reason"]) for row in left)
    assert validate_shards(find_shards("out")).total() == len(kept)
    assert call(capsys, "inspect", "out", "--processor", "tiny")[0] == 0
    harmless(Path("sheet.html").read_text())


def test_pack_takes_or_counts_every_cell_of_a_csv(capsys):
    names = ["id", "question", "answer", "image", "boxes", "kind", "check", "labels"]
    good = {"question": "What?", "answer": "red", "image": "good.jpg", "kind": "single"}
    cells = [*NASTY, *LONG, '{"a":' * 50_000, "[1e999]", "/x"]
    with Path("rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        rows = [good | {"id": f"{n} {i}", n: cell} for n in names for i, cell in enumerate(cells)]
        writer.writerows(rows)
    assert call(capsys, "pack", "rows.csv", "out")[0] == 1
    assert len(samples("out")) + len(rejected("out")) == len(rows) and len(samples("out")) > 30


ODD_COLUMNS = {
    "struct": pa.array([{"x": {"y": 1}}] * 3),
    "number": pa.array([1, 2, 3]),
    "float": pa.array([1.5, None, float("nan")]),
    "bytes": pa.array([b"\xff\0", b"", b"x"]),
    "list": pa.array([[1], [], [2, 3]]),
    "time": pa.array([0, 1, 2], pa.timestamp("us")),
    "decimal": pa.array([10**30] * 3, pa.decimal128(38)),
    "texts": pa.array(list(NASTY[:3])),
    "boolean": pa.array([True, False, None]),
    "null": pa.nulls(3),
}


def test_pack_takes_or_counts_every_type_of_a_parquet(capsys):
    Path("rows").mkdir()
    good = {"question": pa.array(["What?"] * 3), "answer": pa.array(["red"] * 3)}
    good |= {"image": pa.array([jpeg()] * 3), "kind": pa.array(["single"] * 3)}
    for name in (*good, "boxes", "options", "labels", "id", "reasoning", "source"):
        for kind, column in ODD_COLUMNS.items():
            ids = {"id": pa.array([f"{name} {kind} {n}" for n in range(3)])}
            pq.write_table(pa.table(ids | good | {name: column}), f"rows/{name}-{kind}.parquet")
    assert call(capsys, "pack", "rows", "out")[0] == 1
    count = 3 * len(list(Path("rows").iterdir()))
    assert len(samples("out")) + len(rejected("out")) == count and len(samples("out")) > 50


def test_pack_counts_what_a_coco_file_says_wrongly(capsys):
    """In the place of each number or name of it."""
    image = {"id": 1, "file_name": "good.jpg", "width": 60, "height": 40}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20]}
    other = {"id": 2, "image_id": 1, "category_id": 2, "bbox": [40, 5, 10, 10]}
    names = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    whole = {"images": [image], "annotations": [box, other], "categories": names}
    parts = [("images", image), ("annotations", box), ("categories", names[0])]
    places = [(part, entry, name) for part, entry in parts for name in entry]
    for value in VALUES:
        changed = [(part, entry | {name: value}) for part, entry, name in places]
        corners = [[value if n == corner else c for n, c in enumerate(box["bbox"])] for corner in range(4)]
        for part, entry in changed + [("annotations", box | {"bbox": corner}) for corner in corners]:
            Path("coco.json").write_text(json.dumps(whole | {part: [entry, *whole[part][1:]]}))
            verdicts = [admit_row(row, Path()) for row in read_rows([Path("coco.json")])]
            assert verdicts and all(verdict.sample or harmless(verdict.reason) for verdict in verdicts)
    assert call(capsys, "pack", "coco.json", "out")[0] == 1


def nasty_replies(policy, given, mode) -> list[Reply]:
    """Of a policy that says nasty things."""
    said = [NASTY[sum(map(ord, sample.id)) % len(NASTY)] for sample in given]
    return [Reply(response(text, text), text, text, notes=[text], boxes=[(1, 1, 9, 9)]) for text in said]


QUESTION = {"index": "i", "question": "What?", "answer": "A", "A": "a cat", "B": "a dog", "category": "c"}
BENCHMARK_FIELDS = (
    "index", "question", "answer", "A", "category", "image", "bbox", "options", "answer_type",
    "answer_option",
)  # fmt: skip
SHAPE = {"width": 60, "height": 40, "bbox_x1": 1, "bbox_y1": 1, "bbox_x2": 9, "bbox_y2": 9}


@pytest.mark.parametrize("name", ["vstar", "mathvista", "chartqa", "refcoco", "treebench", "pope"])
def test_evaluate_asks_or_counts_every_row(capsys, monkeypatch, name):
    """Those of a JSON list: what a policy says is as nasty; exports of both are read back."""
    monkeypatch.setattr("ivgr.tools.benchmarks.evaluate.Policy.__call__", nasty_replies)
    monkeypatch.setattr("ivgr.tools.benchmarks.evaluate.Policy.batch", lambda policy, mode: 64)
    good = QUESTION | {"image": "good.jpg"} | (SHAPE if name == "refcoco" else {})
    fields = BENCHMARK_FIELDS + (("width", "bbox_x1") if name == "refcoco" else ())
    rows = [
        good | {"index": f"{field} {number}", field: value}
        for field in fields
        for number, value in enumerate(VALUES)
    ]
    Path("rows.json").write_text(json.dumps(rows))
    asked = ["--benchmark", name, "--data", "rows.json"]
    assert call(capsys, "evaluate", *asked, "--model", "tiny", "--out", "out", "--export", "tsv")[0] == 0
    lines = list(map(json.loads, Path(f"out/tiny/text/{name}.jsonl").read_text().splitlines()))
    assert len(lines) == len(rows)
    reasons = Counter(line["why"].startswith("rejected") for line in lines)
    assert reasons[False] > 100 and reasons[True] > 10
    exported = f"out/tiny/text/tiny_{BENCHMARKS[name].kit}.tsv"
    call(capsys, "score", exported, "--benchmark", name, "--data", "rows.json")
    call(capsys, "compare", "out/tiny/text", "out/tiny/text")


def test_evaluate_asks_or_counts_every_cell_of_a_table(capsys, monkeypatch):
    monkeypatch.setattr("ivgr.tools.benchmarks.evaluate.Policy.__call__", nasty_replies)
    monkeypatch.setattr("ivgr.tools.benchmarks.evaluate.Policy.batch", lambda policy, mode: 64)
    cells = [*NASTY, *LONG, "[[0, 0, 1e999, 1]]", "=1+1", "[" * 50]
    good = QUESTION | {"image_path": "good.jpg", "bbox": "[[1, 1, 9, 9]]", "options": ""}
    rows = [good | {"index": f"{n} {i}", n: cell} for n in good for i, cell in enumerate(cells)]
    with Path("vstar.tsv").open("w", newline="") as file:
        writer = csv.DictWriter(file, good, delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    asked = ["evaluate", "--benchmark", "vstar", "--model", "tiny", "--out"]
    assert call(capsys, *asked, "tsv", "--data", "vstar.tsv", "--export", "tsv")[0] == 0
    assert len(Path("tsv/tiny/text/vstar.jsonl").read_text().splitlines()) == len(rows)
    for name in (*QUESTION, "image", "bbox", "options", "choices"):
        for kind, column in ODD_COLUMNS.items():
            texts = {n: pa.array([v] * 3) for n, v in QUESTION.items()} | {"image": pa.array([jpeg()] * 3)}
            pq.write_table(pa.table(texts | {name: column}), "odd.parquet")
            try:
                found = list(open_rows([Path("odd.parquet")], BENCHMARKS["vstar"]).read(range(3)))
            except UserError as error:
                assert "no row of V* can be asked" in str(error), (name, kind)
            else:
                assert len(found) == 3


def test_ask_refuses_what_is_no_image_and_shows_any_question(capsys):
    words = ["--max_new_tokens", "2"]
    Path("text.jpg").write_text(NASTY[0])
    Path("text.tsv").symlink_to("text.jpg")
    for name in ("pipe.jpg", "zero.jpg", "text.jpg", "a\0b.jpg", "[/x].jpg", "x" * 5000 + ".jpg"):
        assert call(capsys, "ask", name, "What?", *words)[0] == 2
    for number, entry in enumerate(entry for entry in HOSTILE if "too large" in "".join(entry.reasons)):
        Path(f"{number}.png").write_bytes(entry.files["jpg"])
        assert call(capsys, "ask", f"{number}.png", "What?", *words)[0] == 2
    for text in (NASTY[0], NASTY[1], NASTY[7]):
        assert call(capsys, "ask", "good.jpg", text, *words)[0] == 0


def test_filter_measures_nasty_samples_and_names_a_broken_one(capsys):
    image = {"images": (encode_image(picture()),), "boxes": ((5, 5, 40, 30),)}
    given = [make_sample(f"{n} {x}", x, question=x, source=x, **image) for n, x in enumerate(NASTY)]
    chosen = replace(given[0], id="chosen", check="choice", options={"A": NASTY[7], "B": "["}, answer="A")
    write_shards(Path("shards"), "train", [*given, chosen], 100)
    small = ["--copies", "2", "--max_new_tokens", "2", "--lowest", "0"]
    assert call(capsys, "filter", "shards", "kept", *small)[0] == 0
    assert [sample.id for sample in samples("kept")] == [*(sample.id for sample in given), "chosen"]
    Path("broken").mkdir()
    write_tar(Path("broken/train-000000.tar"), HOSTILE[:3])
    code, said = call(capsys, "filter", "broken", "none", *small)
    assert (code == 2 and "image: truncated" in said) or "cannot be read" in said
    os.mkfifo("broken/train-000001.tar")
    assert call(capsys, "filter", "broken", "none", *small)[0] == 2


def test_archive_show_shows_any_id_and_any_reasoning(capsys):
    archive = Archive()
    for text in (*NASTY, "9" * 5000, DEEP):
        rollout = make_rollout(response(text), format=1.0, accuracy=1.0, box=0.9, validity=1.0)
        archive.admit([make_query(make_sample(text), grounded=[rollout])])
    state = {"archive": archive.state_dict(), "iteration": 3}
    saved = {"ivgr": state, "pytorch-lightning_version": "2.6.0", "epoch": 0, "global_step": 3}
    torch.save(saved, "a.ckpt")
    code, said = call(capsys, "archive", "show", "a.ckpt")
    assert code == 0 and f"{len(NASTY) + 2} queries" in said
