"""`ivgr evaluate` on the tiny world: replies against the plain model, tables, kill and resume, export."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from ivgr.cli.main import main
from ivgr.core.boxes import iou, parse_boxes
from ivgr.core.prompts import Prompts
from ivgr.evaluation.options import match_option
from ivgr.models.pretrained import Pretrained
from ivgr.tools.benchmarks.benchmarks import BENCHMARKS
from ivgr.tools.benchmarks.find_files import open_rows
from ivgr.tools.inference.crops import Cropping
from ivgr.toy.quiz import COLUMNS as QUIZ_COLUMNS
from ivgr.toy.world import World, draw_samples

COUNT = 40
MODES = ("text", "grounded", "tool")
OPTIONS = ["--openly", "--max_new_tokens", "60", "--batch", "8"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    main(["synth", str(folder), "--split", "val", "--count", str(COUNT * 5 // 4), "--seed", "5", "--tsv"])
    return folder


def command(data, out, *modes):
    return [
        "evaluate",
        "--benchmark",
        "vstar",
        "--data",
        str(data),
        "--mode",
        *modes,
        "--out",
        str(out),
        *OPTIONS,
    ]


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    main(command(data, out, *MODES))
    return out


def lines(path):
    return list(map(json.loads, path.read_text().splitlines()))


def test_the_tsv_asks_the_worlds_questions(data):
    rows = list(open_rows([data / "vstar.tsv"], BENCHMARKS["vstar"]).read(range(99)))
    samples = [s for s in draw_samples(World("val", COUNT * 5 // 4, seed=5)) if s.kind == "paired"]
    assert len(rows) == len(samples) == COUNT
    for row, sample in zip(rows, samples, strict=True):
        assert row.options[row.gold] == sample.answer and row.question == sample.question
        assert len(set(row.options.values())) == len(row.options) and row.images == sample.images
        assert row.boxes == tuple(tuple(map(float, box)) for box in sample.boxes)
    assert len({row.gold for row in rows}) == 4


def test_every_line_is_the_plain_models_reply_scored(data, runs):
    model, processor = Pretrained("tiny").load()
    samples = [s for s in draw_samples(World("val", COUNT * 5 // 4, seed=5)) if s.kind == "paired"]
    for mode, stream in (("text", "textual"), ("grounded", "grounded")):
        found = lines(runs / "tiny" / mode / "vstar.jsonl")
        assert [row["index"] for row in found] == [str(n) for n in range(COUNT)]
        for row, sample in list(zip(found, samples, strict=True))[:6]:
            images = sample.open_images()
            text, prompt = generate(model, processor, sample.question, images, stream)
            assert row["reply"] == text and row["prompt"].splitlines() == prompt.splitlines()
            assert row["verdict"] == (match_option(row["answer"], row["options"]) == row["gold"])
            scale = [side / 1000 for side in images[0].size * 2]
            boxes = [[c * s for c, s in zip(box, scale, strict=True)] for box in parse_boxes(text)]
            assert row["boxes"] == [pytest.approx(box, abs=0.01) for box in boxes]
            best = [max((iou(gold, box) for box in boxes), default=0) for gold in sample.boxes]
            assert row["iou"] == pytest.approx(sum(best) / len(best))


def generate(model, processor, question, images, stream):
    """The stock model's greedy reply, and what it was told after the images."""
    chat = Prompts().messages(question, len(images), stream)
    prompt = processor.apply_chat_template([chat], tokenize=False, add_generation_prompt=True)
    inputs = processor(images=images, text=prompt, return_tensors="pt")
    with torch.no_grad():
        output = model.generate(**inputs, do_sample=False, max_new_tokens=60)
    written = output[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(written, skip_special_tokens=True), chat[0]["content"][-1]["text"]


def test_a_tool_row_is_the_grounded_pass_and_a_look_at_its_crops(data, runs):
    model, processor = Pretrained("tiny").load()
    samples = [s for s in draw_samples(World("val", COUNT * 5 // 4, seed=5)) if s.kind == "paired"]
    tool, grounded = (lines(runs / "tiny" / mode / "vstar.jsonl") for mode in ("tool", "grounded"))
    for row, first in zip(tool, grounded, strict=True):
        assert row["first_pass"] == first["reply"] and first["first_pass"] == ""
        assert row["boxes"] == first["boxes"] and row["iou"] == first["iou"]
        assert (row["crops"] > 0) == (row["boxes"] != []) and row["tokens"] > first["tokens"]
    for row, sample in list(zip(tool, samples, strict=True))[:5]:
        image, cropping = sample.open_images()[0], Cropping()
        around = cropping.union(row["boxes"], image.size)
        cut = [crop for crop in cropping.crops(row["boxes"], image.size) if crop != around] + [around]
        images = [image, *map(image.crop, cut)]
        text, prompt = generate(model, processor, sample.question, images, "textual")
        assert row["reply"] == text and row["crops"] == len(cut)
        assert row["prompt"].splitlines() == prompt.splitlines()


def test_tables_have_every_mode_with_intervals_and_an_average(runs):
    rows = list(csv.DictReader((runs / "scores.csv").open()))
    known = {(row["mode"], row["benchmark"], row["part"]): row for row in rows}
    for mode in MODES:
        verdicts = [row["verdict"] for row in lines(runs / "tiny" / mode / "vstar.jsonl")]
        whole = known[mode, "V*", ""]
        assert float(whole["value"]) == pytest.approx(100 * sum(verdicts) / COUNT) and whole["rows"] == str(
            COUNT
        )
        assert float(whole["low"]) < float(whole["value"]) < float(whole["high"])
        assert float(known[mode, "Average", ""]["value"]) == float(whole["value"])
        assert (mode, "V*", "relative_position") in known and float(whole["value"]) > 30
    assert ("grounded", "V*", "mIoU") in known and ("text", "V*", "mIoU") not in known
    markdown = (runs / "scores.md").read_text().splitlines()
    assert markdown[0] == "| benchmark | tiny · text | tiny · grounded | tiny · tool |"
    assert markdown[-1].startswith("| Average |")


def snapshot(out):
    return {p.relative_to(out): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_killed_and_called_again_it_ends_with_the_same_files(data, runs, tmp_path, after=17):
    out, journal = tmp_path / "out", tmp_path / "out" / "tiny" / "tool" / "vstar.jsonl"
    run = subprocess.Popen(
        [sys.executable, "-m", "ivgr", *command(data, out, *MODES)], start_new_session=True
    )
    while run.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= after):
        time.sleep(0.001)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    done = journal.read_bytes().count(b"\n")
    assert after <= done < COUNT and not (out / "scores.md").exists()
    with journal.open("ab") as file:
        file.write(b'{"index": "half a li')
    main(command(data, out, *MODES))
    assert snapshot(out) == snapshot(runs)


def test_what_is_done_is_not_asked_again(data, runs, monkeypatch, capsys):
    monkeypatch.setattr("ivgr.tools.benchmarks.evaluate.respond", None)
    before = snapshot(runs)
    main(command(data, runs, *MODES[::-1]))
    assert snapshot(runs) == before and capsys.readouterr().out.count("was done before") == 3


def test_predictions_for_vlmevalkit(data, runs):
    for form in ("tsv", "xlsx"):
        if form == "xlsx":
            openpyxl = pytest.importorskip("openpyxl")
        main([*command(data, runs, "text"), "--export", form])
        path = runs / "tiny" / "text" / f"tiny_VStarBench.{form}"
        if form == "tsv":
            table = list(csv.reader(path.open(newline=""), delimiter="\t"))
        else:
            book = openpyxl.load_workbook(path).active
            table = [["" if cell is None else str(cell) for cell in row] for row in book.values]
        found = lines(runs / "tiny" / "text" / "vstar.jsonl")
        header, *rows = table
        assert (header[0], header[-1], len(rows)) == ("index", "prediction", COUNT)
        assert sorted(header[1:-1]) == sorted(QUIZ_COLUMNS[2:])
        assert [row[0] for row in rows] == [str(n) for n in range(COUNT)]
        if form == "xlsx":
            assert [cell.value for cell in book["A"]] == ["index", *range(COUNT)]
        for cells, row in zip(rows, found, strict=True):
            named = dict(zip(header, cells, strict=True))
            options = {letter: named[letter] for letter in "ABCD" if named.get(letter)}
            assert options == row["options"] and named["prediction"] == row["answer"]
            assert (match_option(named["prediction"], options) == named["answer"]) == row["verdict"]
        path.unlink()


def test_compare_and_analyse_print_the_difference(runs, capsys):
    main(["compare", str(runs / "tiny" / "text"), str(runs / "tiny" / "grounded" / "vstar.jsonl")])
    printed = capsys.readouterr().out
    text, grounded = (
        [row["verdict"] for row in lines(runs / "tiny" / mode / "vstar.jsonl")]
        for mode in ("text", "grounded")
    )
    difference = 100 * (sum(grounded) - sum(text)) / COUNT
    assert f"{difference:+.1f}" in printed and f"│ {COUNT} " in printed
    main(["analyse", str(runs / "tiny")])
    printed = capsys.readouterr().out
    assert f"{difference:+.1f} [" in printed and "(0.75, 1]" in printed


@pytest.mark.parametrize(("args", "message"), [
    (["--benchmark", "vstar"], "--data are needed"), (["--data", "{data}"], "--benchmark (of vstar"),
    (["--benchmark", "coco", "--data", "{data}"], "must be among vstar, hrbench4k"),
    (["--benchmark", "vstar", "--data", "{data}", "--max_pixels", "9", "--out", "{out}"], "--max_pixels"),
    (["--benchmark", "vstar", "--data", "{data}", "--cropping.most", "0"], "most"),
    (["--benchmark", "vstar", "--data", "{data}", "--mode", "loud"], "--mode is 'loud'"),
    (["--benchmark", "vstar", "--data", "{data}", "--export", "pdf"], "--export is 'pdf'"),
    (["--benchmark", "vstar", "pope", "--data", "{data}/vstar.tsv"], "is one file"),
    (["--benchmark", "pope", "--data", "{data}"], "no .tsv, .parquet or .json of POPE"),
    (["--benchmark", "vstar", "--data", "{data}", "--model", "a/x", "b/x"], "same name"),
    (["--benchmark", "vstar", "--data", "{data}", "--model", "/no/model", "--out", "{out}"],
     "no image-text-to-text"),
])  # fmt: skip
def test_misuse_is_one_clear_line(data, tmp_path, capsys, args, message):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *(arg.format(data=data, out=tmp_path) for arg in args)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


def test_other_settings_need_another_folder(data, runs, capsys):
    with pytest.raises(SystemExit):
        main([*command(data, runs, "text"), "--batch", "4"])
    assert "begun with batch 8, now it is 4" in capsys.readouterr().err
    for args in (["compare", str(runs), str(runs)], ["analyse", str(runs)]):
        with pytest.raises(SystemExit):
            main(args)
        assert "ivgr evaluate" in capsys.readouterr().err
