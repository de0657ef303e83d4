"""`ivgr score`: every known benchmark's two figures beside VLMEvalKit's rules (kit.py), and its errors."""

import csv
import json
import random
import re

import pytest

from ivgr.cli.main import main
from ivgr.core.errors import UserError
from ivgr.evaluation import match_option
from ivgr.tools.benchmarks import predictions
from ivgr.tools.benchmarks.benchmarks import BENCHMARKS
from ivgr.tools.benchmarks.export_predictions import export_rows
from ivgr.tools.benchmarks.find_files import open_rows
from ivgr.tools.benchmarks.predictions import read_predictions
from ivgr.tools.benchmarks.scoring import RULES
from ivgr.tools.inference.parse_reply import read_parts
from support import kit
from support.benchmark_files import write_tsv

WORDS = {"A": "red", "B": "dark blue", "C": "a cat", "D": "None of these"}
NUMBERS = {"A": "3", "B": "2", "C": "13", "D": "0.5"}
TWO = {"A": "Yes", "B": "No"}
FIVE = {**WORDS, "E": "black"}
LETTER_ROWS = [{"multi-choice options": "\n".join(f"({k}) {v}" for k, v in FIVE.items())}]
SPLIT_NAMES = ["RefCOCO_val", "RefCOCO_testA", "RefCOCO+_testB", "RefCOCOg_test", "RefCOCO_odd"]
MARK = [
    "{}", "({})", "**{}**", "{}.", "The answer is {}", "The answer is {}, as the sign beside it shows to all",
    "I see {}", "Best answer: {}", "Answer: {}", "{} or A", "It is {} I think, which is what I see there",
    "The correct option is {}", "[{}]", "{}\n", "not {} but the other of the two that I was shown here",
]  # fmt: skip
SAID = [
    "A", "B", "C", "D", "E", "Z", "a", "b", "red", "Dark Blue", "a cat", "black", "3", "2", "13", "0.5",
    "yes", "No", "Yes", "no", "", "14", "14.4", "14%", "1.20", "None of these", "[100, 100, 500, 500]",
    "0.1 0.1 0.5 0.5", "<box>[96, 120, 480, 610]</box>", "[-3, 2000, 500, 100]", "[500, 500, 100, 100]",
]  # fmt: skip
WHOLE = [
    "", " ", ")", "I can't process this file. A", "Cannot determine the answer, red", "yes and no",
    "Sorry, I can't help with images of people yet.", "Failed to obtain answer via API. red",
    "x. " * 40 + "yes.", "Yes, 1,000 of them-no", "yes/no", "None", "nan",
]  # fmt: skip
FRAMES = [
    "{}", "<think>First <answer>B</answer>, the red one.</think><answer>{}</answer>", "<answer>{}</answer>",
    "<think>The answer is C, [1, 2, 3, 4], no.</think>\n<answer> {} </answer>", "<think>A red cat</think>{}",
    "<answer>{}", "<think>It is a dog. </think><answer>{}</answer> B",
]  # fmt: skip


def replies_of(count, seed):
    draw = random.Random(seed)
    said = [mark.format(word) for mark in MARK for word in SAID] + WHOLE * 6
    return [draw.choice(FRAMES).format(draw.choice(said)) for _ in range(count)]


def answer_of(draw, options):
    return {**options, "answer": draw.choice(list(options))}


def make_row(name, n, draw):
    """A row as VLMEvalKit's TSV of that benchmark has it."""
    if name in ("mme-realworld-lite", "treebench"):
        return {
            **LETTER_ROWS[0],
            "answer": draw.choice("ABCDE"),
            "category": "Perception/OCR",
            "l2-category": "x",
        }
    if name == "pope":
        names = draw.choice(["adversarial,popular,random", "popular", "random", "adversarial,random"])
        return {"answer": draw.choice(["Yes", "No"]), "category": names}
    if name == "chartqa":
        gold = draw.choice(["14", "['14']", "14%", "Yes", "red", "0", "0.5", "['red', 'no']", "[2, 3]"])
        return {"answer": gold, "split": draw.choice(["test_human", "test_augmented"])}
    if name == "mathvista":
        kind = draw.choice(["multi_choice", "integer", "float", "text", "list"])
        options = list(WORDS.values())
        right = draw.choice(options)
        gold = {"multi_choice": right, "integer": "14", "float": "1.2", "text": "red", "list": "[1, 2]"}[kind]
        free = kind != "multi_choice"
        return {
            "answer": gold, "task": "geometry", "answer_type": kind,
            "question_type": "free_form" if free else kind, "choices": "" if free else repr(options),
            "answer_option": "" if free else "ABCD"[options.index(right)],
        }  # fmt: skip
    if name == "refcoco":
        box = {"bbox_x1": "64", "bbox_y1": "48.5", "bbox_x2": "320", "bbox_y2": "241"}
        return {**box, "answer": "", "width": "640", "height": "480", "split": draw.choice(SPLIT_NAMES)}
    if name == "realworldqa" and n % 4 == 3:
        return {**dict.fromkeys("ABCD", ""), "answer": draw.choice(["Yes", "3", "red"])}
    extra = {"category": draw.choice(["count", "color"]), "cycle_category": str(n % 4), "split": "2D"}
    kind = {"cv-bench-2d": "2D", "cv-bench-3d": "3D"}.get(name, "")
    options = draw.choice([WORDS, NUMBERS, TWO | {"C": "", "D": ""}])
    row = {**options, "answer": draw.choice([letter for letter in options if options[letter]])}
    return row | extra | {"source": draw.choice(["ADE20K", "COCO", "COCO"]), "type": kind, "task": "t"}


def make(tmp_path, name, count=240):
    draw = random.Random(name)
    rows = [{"index": str(n), "question": "Which?"} | make_row(name, n, draw) for n in range(count)]
    path = write_tsv(tmp_path / f"{BENCHMARKS[name].kit}.tsv", rows)
    replies = [
        draw.choice(FRAMES).format(draw.choice(MARK).format(row.get("answer_option") or row["answer"]))
        if draw.random() < 0.4
        else reply
        for row, reply in zip(rows, replies_of(count, name), strict=True)
    ]
    names = [f"{row['split']}_{row['index']}" if name == "refcoco" else row["index"] for row in rows]
    return rows, path, dict(zip(names, replies, strict=True))


def write_jsonl(path, replies):
    lines = [json.dumps({"index": index, "prediction": reply}) for index, reply in replies.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def run(path, name, data):
    found = path.with_suffix(".found.json")
    main(["score", str(path), "--benchmark", name, "--data", str(data), "--json", str(found)])
    return json.loads(found.read_text())


@pytest.mark.parametrize("name", kit.RULES)
def test_both_figures_are_those_of_the_kit(tmp_path, name):
    rows, data, replies = make(tmp_path, name)
    found = run(write_jsonl(tmp_path / "p.jsonl", replies), name, data)
    texts = list(replies.values())
    assert found["kit_score"] == pytest.approx(kit.headline(name, rows, texts), abs=1e-9)
    blocks = [kit.block(name, text) for text in texts]
    assert found["score"] == pytest.approx(kit.headline(name, rows, blocks), abs=1e-9)
    assert found["kit_score"] != found["score"] and 0 < found["score"] < 100
    assert (found["rows"], found["missing"]) == (len(rows), 0)


def test_every_benchmark_of_the_kit_has_its_rule_here():
    assert kit.RULES.keys() == {name for name, one in BENCHMARKS.items() if one.in_kit}


@pytest.mark.parametrize("choices", [WORDS, NUMBERS, TWO, FIVE, {}])
def test_options_are_read_as_the_kit_reads_them(choices):
    for reply in [*replies_of(600, str(choices)), *WHOLE, *[m.format(s) for m in MARK for s in SAID]]:
        assert match_option(reply, choices) == (kit.infer(reply, choices) or None), reply


def test_popes_score_is_f1_over_all_splits(tmp_path):
    """As in COCO-POPE: positives shared by the three splits, negatives of one each."""
    every = "adversarial,popular,random"
    rows = [("Yes", every, "Yes")] * 8 + [("Yes", every, "No")] * 2 + [("No", "adversarial", "Yes")] * 3
    rows += [("No", "random", "No")] * 7 + [("No", "popular", "perhaps")]
    table = [{"index": n, "question": "?", "answer": a, "category": c} for n, (a, c, _) in enumerate(rows)]
    data = write_tsv(tmp_path / "POPE.tsv", table)
    found = run(
        write_jsonl(tmp_path / "p.jsonl", {n: said for n, (_, _, said) in enumerate(rows)}), "pope", data
    )
    precision, recall = 24 / 27, 24 / 30
    assert found["kit_score"] == found["score"] == pytest.approx(100 * 2 / (1 / precision + 1 / recall))
    parts = {part: one["score"] for part, one in found["parts"].items()}
    assert parts["precision"] == pytest.approx(100 * precision) and parts["recall"] == pytest.approx(80)
    assert parts["accuracy"] == pytest.approx(100 * (24 + 7) / 41)
    assert parts["adversarial"] == pytest.approx(100 * 16 / (8 + 3 + 10))


def test_the_kits_own_files_and_ours_give_the_same(tmp_path):
    rows, data, replies = make(tmp_path, "vstar", 60)
    jsonl = write_jsonl(tmp_path / "p.jsonl", replies)
    journal = tmp_path / "vstar.jsonl"
    journal.write_text("".join(json.dumps({"index": i, "reply": t}) + "\n" for i, t in replies.items()))
    lines = [{"index": index, "answer": text} for index, text in replies.items()]
    expected = run(jsonl, "vstar", data)
    for suffix in ("tsv", "xlsx"):
        if suffix == "xlsx":
            pytest.importorskip("openpyxl")
        path = tmp_path / f"m_VStarBench.{suffix}"
        export_rows(lines, rows, path)
        assert run(path, "vstar", data) == expected
    assert run(journal, "vstar", data) == expected
    assert run(jsonl, "vstar", tmp_path) == expected  # the folder


def test_what_is_missing_is_left_out_and_said(tmp_path, capsys):
    rows, data, replies = make(tmp_path, "hrbench4k", 40)
    few = dict(list(replies.items())[:25])
    found = run(write_jsonl(tmp_path / "p.jsonl", few), "hrbench4k", data)
    assert found["missing"] == 15 and "15 rows of the benchmark have no prediction" in capsys.readouterr().out
    assert found["kit_score"] == pytest.approx(kit.headline("hrbench4k", rows[:25], list(few.values())))


def test_benchmarks_that_the_kit_lacks_say_so(tmp_path, capsys):
    rows = [
        {"index": 1, "question": "?", **TWO, "answer": "A"},
        {"index": 2, "question": "?", "answer": "a sign"},
    ]
    for name in ("zoombench", "visualprobe"):
        data = write_tsv(tmp_path / f"{name}.tsv", [{**dict.fromkeys("AB", ""), **row} for row in rows])
        path = write_jsonl(tmp_path / "p.jsonl", {1: "<answer>A</answer>", 2: "<answer>Sign.</answer>"})
        found = run(path, name, data)
        assert found["score"] == 100 and found["kit_score"] == 0 and not found["in_kit"]
        assert "VLMEvalKit has no" in capsys.readouterr().out


ROW = '{"index": 1, "prediction": "A"}\n'


@pytest.mark.parametrize(("name", "content", "message"), [
    ("p.jsonl", '{"index": 1}\n', "line 1: no column prediction; it has index"),
    ("p.jsonl", '{"prediction": "A"}\n', "line 1: no column index"),
    ("p.jsonl", ROW + ROW, "index '1' stands there twice"),
    ("p.jsonl", '{"index": 77, "prediction": "A"}\n', "index '77' is none of V*'s 3 rows"),
    ("p.jsonl", '{"index": 1, "prediction": NaN}\n', "its prediction is nan; give a text"),
    ("p.jsonl", '{"index": NaN, "prediction": "A"}\n', "its index is nan"),
    ("p.jsonl", '{"index": Infinity, "prediction": "A"}\n', "its index is inf"),
    ("p.jsonl", '{"index": 1, "prediction": ["A"]}\n', "its prediction is ['A']; give a text"),
    ("p.jsonl", '{"index": 1, "prediction": true}\n', "its prediction is True"),
    ("p.jsonl", "[1]\n", "line 1: no object"), ("p.jsonl", "{\n", "line 1: no JSON"),
    ("p.jsonl", '{"index": ' + "9" * 5000 + ', "prediction": "A"}\n', "line 1: no JSON"),
    ("p.jsonl", "[" * 100_000 + "\n", "p.jsonl"),
    ("p.jsonl", "", "holds no prediction"), ("p.jsonl", b"\xff\xfe\0", "no whole .jsonl"),
    ("p.tsv", "index\tanswer\n1\tA\n", "no column prediction; it has index, answer"),
    ("p.tsv", "prediction\nA\n", "no column index"), ("p.tsv", "index\tprediction\n1\n", "1 cells for 2"),
    ("p.tsv", "index\tprediction\n1\tA\n1\tB\n", "stands there twice"),
    ("p.tsv", "index\tprediction\n", "holds no prediction"), ("p.tsv", "", "holds no prediction"),
    ("p.tsv", 'index\tprediction\n1\t"A\n', "no whole .tsv"),
    ("p.tsv", "index\tprediction\n\tA\n", "its index is ''"),
    ("p.xlsx", b"PK\x03\x04 and no more", "no whole .xlsx"), ("p.xlsx", b"", "no whole .xlsx"),
    ("p.csv", ROW, "must be a .jsonl, .tsv, .xlsx"),
])  # fmt: skip
def test_misuse_is_one_clear_line(tmp_path, capsys, name, content, message):
    rows = [{"index": n, "question": "?", **WORDS, "answer": "A"} for n in range(3)]
    data = write_tsv(tmp_path / "vstar.tsv", rows)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as stop:
        main(["score", str(tmp_path / name), "--benchmark", "vstar", "--data", str(data)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1 and len(error) < 700


@pytest.mark.parametrize(("args", "message"), [
    (["{p}"], "--data are needed"), (["{p}", "--benchmark", "coco", "--data", "."], "must be among vstar"),
    (["{p}", "--benchmark", "vstar", "--data", "/no"], "nothing there"),
    (["/no.jsonl", "--benchmark", "vstar", "--data", "{d}"], "nothing there"),
    (["{p}", "--benchmark", "vstar", "--data", "{d}", "--json", "/dev/null/x"], "/dev/null: File exists"),
])  # fmt: skip
def test_wrong_arguments_are_one_clear_line(tmp_path, capsys, args, message):
    data = write_tsv(tmp_path / "vstar.tsv", [{"index": 1, "question": "?", **WORDS, "answer": "A"}])
    (tmp_path / "p.jsonl").write_text(ROW)
    with pytest.raises(SystemExit) as stop:
        main(["score", *(arg.format(p=tmp_path / "p.jsonl", d=data) for arg in args)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    pytest.importorskip("openpyxl")
    path = tmp_path / "m.xlsx"
    export_rows([{"index": "1", "answer": "A " * 50_000}], [{}], path)
    assert read_predictions(path) == {"1": "A " * (32767 // 2) + "A"}  # what a cell holds
    for limit, message in ((path.stat().st_size + 9, "unpacks to more than"), (9, "has more than 9 bytes")):
        monkeypatch.setattr(predictions, "LARGEST", limit)
        with pytest.raises(UserError, match=message):
            read_predictions(path)


LIVE = ["=1+1", '=HYPERLINK("http://x","y")', "+1", "-2+3", "@SUM(A1)", "\t=1", "#N/A", "1e5", "007", "TRUE",
        "a\nb", 'say "hi"', "tab\there", " spaced ", "", "[/x]", "None", "١٢"]  # fmt: skip


@pytest.mark.parametrize("form", ["tsv", "xlsx"])
def test_predictions_stay_the_texts_they_are(tmp_path, form):
    """Also what a spreadsheet would calculate, and none of it is a formula."""
    lines = [{"index": str(n), "answer": text} for n, text in enumerate(LIVE)]
    columns = [{"index": str(n), "question": text, "answer": "A"} for n, text in enumerate(LIVE)]
    path = tmp_path / f"m.{form}"
    if form == "xlsx":
        openpyxl = pytest.importorskip("openpyxl")
        export_rows(lines, columns, path)
        _, *rows = openpyxl.load_workbook(path).active.iter_rows()
        cells = [cell for row in rows for cell in row[1:]]
        assert {cell.data_type for cell in cells} <= {"s", "inlineStr", "n"} and all(
            c.value is None for c in cells if c.data_type == "n"
        )
        table = [["" if cell.value is None else cell.value for cell in row] for row in rows]
        risky = [row[-1] for row in rows if str(row[-1].value or "")[:1] in tuple("=+-@\t")]
        assert len(risky) == 6 and all(cell.quotePrefix for cell in risky)
    else:
        export_rows(lines, columns, path)
        _header, *table = csv.reader(path.open(newline=""), delimiter="\t", strict=True)
    assert [row[-1] for row in table] == [row[1] for row in table] == LIVE


def test_what_no_file_can_hold_is_left_out(tmp_path):
    texts = ["a\0b", "c\x1bd\x07", "half \ud800 a pair", "9" * 5000]
    columns = [{"index": text} for text in texts]
    lines = [{"index": text, "answer": text} for text in texts]
    export_rows(lines, columns, tmp_path / "m.tsv")
    found = list(csv.reader((tmp_path / "m.tsv").open(newline=""), delimiter="\t", strict=True))
    assert [row[-1] for row in found[1:]] == ["ab", "c\x1bd\x07", "half ? a pair", "9" * 5000]
    openpyxl = pytest.importorskip("openpyxl")
    export_rows(lines, columns, tmp_path / "m.xlsx")
    cells = [row[-1] for row in openpyxl.load_workbook(tmp_path / "m.xlsx").active.values]
    assert cells[1:] == ["ab", "cd", "half ? a pair", "9" * 5000]


NAMED = re.compile(r"answer|option|choice", re.IGNORECASE)


@pytest.mark.parametrize("name", [name for name in kit.RULES if name not in ("mathvista", "pope")])
def test_evaluates_own_rule_differs_only_where_it_says_so(tmp_path, name):
    """On exported answers: where a reply speaks of its answer or option, where nothing is written and where
    there is no option to name; else verdict for verdict VLMEvalKit's. MathVista's asks a model, and POPE's
    is one rule in both."""
    rows, data, replies = make(tmp_path, name)
    hit, _ = kit.RULES[name]
    same = 0
    read = open_rows([data], BENCHMARKS[name], asked=False).texts()
    for row, shown, reply in zip(rows, read, replies.values(), strict=True):
        answer = read_parts(reply).answer
        ours = bool(RULES[BENCHMARKS[name].rule](answer, shown.gold, shown.options).right)
        theirs = hit(row, f"<answer>{answer}</answer>" if hit is kit.letter_hit else answer)
        free = BENCHMARKS[name].rule == "open" and not shown.options
        assert ours == theirs or NAMED.search(answer) or not answer.strip(" ()") or free, (row, answer)
        same += ours == theirs
    assert same > 0.85 * len(rows)
