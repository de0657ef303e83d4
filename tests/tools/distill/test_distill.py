"""From a run's rollouts to cold-start shards: on gold reasoning and on a real run."""

import gzip
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from ivgr.cli.main import main
from ivgr.core.boxes import ROWS
from ivgr.core.resumable_jsonl import ResumableJsonl
from ivgr.core.sample import read_sample
from ivgr.data.sft_encode import write_response
from ivgr.data.shards import find_shards, read_shards, write_shards
from ivgr.tools.distill.collect import Candidate
from ivgr.tools.distill.distill import RewritePipeline
from ivgr.toy import RuleJudge
from ivgr.toy.rule_rewriter import RuleRewriter
from ivgr.toy.world import World, draw_samples
from support.samples import RELATIVE, make_sample

CONFIGS = Path(__file__).parents[3] / "configs"
GOOD = {"format": 1.0, "accuracy": 1.0, "box": 1.0}
CROSS = "The cross is at <box>[700,700,900,900]</box>. The cross is red."


def row(sample, text, stream="grounded", **terms):
    return {
        "id": sample.id, "stream": stream, "text": text, "frame": [1000, 1000], "terms": GOOD | terms,
    }  # fmt: skip


def record(run, *iterations):
    (run / "rollouts").mkdir(parents=True)
    for number, rows in enumerate(iterations, 1):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (run / "rollouts" / f"{number:06d}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))


def gold(sample):
    return write_response(sample.reasoning["grounded"], sample.answer)


def read(folder):
    return [read_sample(entry) for entry in read_shards(find_shards(str(folder)))]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run on 100 scenes: gold rollouts, and others that are worse or no good."""
    folder = tmp_path_factory.mktemp("distill")
    samples = list(draw_samples(World("train", 100, seed=5)))
    write_shards(folder / "shards", "train", samples, 30)
    paired = [sample for sample in samples if sample.kind == "paired"]
    lie = "<think>The sky is at <box>[1,1,9,9]</box>.</think><answer>up</answer>"
    record(
        folder / "run",
        [row(s, lie, box=0.8) for s in paired[:40]] + [row(s, "no tags", format=0.0) for s in paired],
        [row(s, gold(s)) for s in paired[:70]],
        [row(s, lie, accuracy=0.0) for s in paired[:40]] + [row(s, lie, "textual") for s in paired],
        [row(s, gold(s), box=0.3) for s in paired[70:]],
    )
    return folder, {sample.id: sample for sample in paired[:70]}


@pytest.fixture(scope="module")
def distilled(world):
    distil(world[0], "out")
    return read(world[0] / "out")


def distil(folder, name, *options):
    main(["distill", str(folder / "run"), str(folder / "shards"), str(folder / name), *options])
    return folder / name


def expected(sample):
    """The sentences that say all of `sample`, from its boxes in pixels, its question and answer."""
    width, height = sample.open_images()[0].size
    sentences = set()
    for label, (x1, y1, x2, y2) in zip(sample.labels, sample.boxes, strict=True):
        row = ("upper", "middle", "lower")[3 * (y1 + y2) // (2 * height)]
        column = ("left", "center", "right")[3 * (x1 + x2) // (2 * width)]
        sentences.add(f"the {label} is in the {row} {column}")
    if asked := re.match(r"What (color|shape) is the (.*)\?", sample.question):
        article = "a " if asked[1] == "shape" else ""
        sentences.add(f"the {asked[2]} is {article}{sample.answer}")
    return sentences


def sentences_of(text):
    statements = re.sub(r"Where is [^?]*\? ", "", text).replace(" and the", ". The")
    return {part[0].lower() + part[1:] for part in statements.rstrip(".").split(". ")}


def test_every_rewrite_says_what_the_boxes_say(world, distilled):
    textual = [sample for sample in distilled if "textual" in sample.reasoning]
    assert len(textual) == 6
    for sample in textual:
        assert sentences_of(sample.reasoning["textual"]) == expected(world[1][sample.id])


def test_the_ratio_is_exact_and_the_rest_of_the_sample_untouched(world, distilled):
    counts = Counter(stream for sample in distilled for stream in sample.reasoning)
    assert counts == {"grounded": 64, "textual": 6}
    assert all(len(sample.reasoning) == 1 for sample in distilled)
    for sample in distilled:
        original = world[1][sample.id]
        assert replace(sample, reasoning=original.reasoning) == original


def test_grounded_demonstrations_are_the_best_rollouts(world, distilled):
    for sample in distilled:
        if text := sample.reasoning.get("grounded"):
            assert text == world[1][sample.id].reasoning["grounded"]


def test_the_table_counts_every_step(world, capsys):
    distil(world[0], "counted", "--k", "2", "--best", "2")
    lines = re.findall(r"│ (.*?) +│ (\d+) ", capsys.readouterr().out)
    counts = {name: int(number) for name, number in lines}
    paired = 80
    assert counts["grounded rollouts read"] == 40 + paired + 70 + 40 + 10
    assert counts["qualified"] == 110 and counts["taken, the best of each query"] == 110
    assert counts["rewrites asked for"] == 220
    # "The sky is at …" has two wordings, and its answer "up" is not that of the sample.
    assert counts["lost: answer"] == 80 and counts["kept"] == 140
    assert counts["rewritten"] == counts["kept"] + counts["lost: answer"]


def test_equal_seeds_write_equal_bytes(world, distilled):
    again, other = distil(world[0], "again"), distil(world[0], "other", "--seed", "1")
    assert (again / "train-000000.tar").read_bytes() == (world[0] / "out" / "train-000000.tar").read_bytes()
    assert [s.reasoning for s in read(other)] != [s.reasoning for s in distilled]


def test_a_second_call_keeps_its_rewrites_and_replaces_its_shards(world):
    folder = distil(world[0], "twice", "--per_shard", "20")
    rewrites = (folder / "rewrites.jsonl").read_bytes()
    distil(world[0], "twice", "--per_shard", "50", "--ratio", "2:1")
    assert (folder / "rewrites.jsonl").read_bytes() == rewrites
    assert Counter(stream for s in read(folder) for stream in s.reasoning) == {"grounded": 70, "textual": 35}


class Failing(RuleRewriter):
    """Gives up once it has been asked for `limit` items."""

    def __init__(self, limit):
        self.limit, self.asked = limit, []

    def rewrite(self, items, k, seed):
        if len(self.asked) + len(items) > self.limit:
            raise ConnectionError
        self.asked += items
        return super().rewrite(items, k, seed)


def test_an_interrupted_call_goes_on_where_it_stood(tmp_path):
    items = [Candidate(make_sample(f"s{i}"), f"{CROSS} {i}", "red", RELATIVE) for i in range(10)]
    whole, broken = Failing(10), Failing(7)
    RewritePipeline(whole, RuleJudge(), 3, 0.7, 0, 3).fill(
        ResumableJsonl(tmp_path / "whole", "rewrites", {}), items
    )
    with pytest.raises(ConnectionError):
        RewritePipeline(broken, RuleJudge(), 3, 0.7, 0, 3).fill(
            ResumableJsonl(tmp_path / "broken", "rewrites", {}), items
        )
    path = tmp_path / "broken" / "rewrites.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    rest = Failing(10)
    RewritePipeline(rest, RuleJudge(), 3, 0.7, 0, 3).fill(
        ResumableJsonl(tmp_path / "broken", "rewrites", {}), items
    )
    assert rest.asked == items[5:]
    assert path.read_bytes() == (tmp_path / "whole" / "rewrites.jsonl").read_bytes()


@pytest.mark.slow
def test_a_real_run_is_distilled_and_trained_on(tmp_path, capsys):
    root = ["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu"]
    main([
        "fit", "--config", str(CONFIGS / "tiny.yaml"), *root, "--model.iterations", "2",
        "--data.train_count", "60", "--data.val_count", "20", "--data.val_queries", "4",
        "--data.prompts", "40",
    ])  # fmt: skip
    shards, val = str(tmp_path / "run" / "world" / "train"), str(tmp_path / "run" / "world" / "val")
    main(["distill", str(tmp_path / "run"), shards, str(tmp_path / "out"), "--ratio", "3:1"])
    samples = read(tmp_path / "out")
    textual = [s.reasoning["textual"] for s in samples if "textual" in s.reasoning]
    assert len(samples) == 4 * len(textual) > 0
    assert all("<box>" not in text and any(row in text for row in ROWS) for text in textual)
    main([
        "fit", "--config", str(CONFIGS / "distill_sft.yaml"), "--data.train", str(tmp_path / "out"),
        "--data.val", val, "--data.steps", "2", "--data.batch", "4", "--data.val_queries", "4",
        "--trainer.default_root_dir", str(tmp_path / "sft"), "--trainer.accelerator", "cpu",
    ])  # fmt: skip
    assert "the model is in" in capsys.readouterr().out
    assert (tmp_path / "sft" / "model" / "model.safetensors").exists()


def fails(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main(["distill", *map(str, args)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    return error


def test_misuse_is_one_clear_line(world, tmp_path, capsys):
    folder, samples = world
    run, shards, out = folder / "run", folder / "shards", tmp_path / "out"
    assert "no rollouts" in fails(capsys, tmp_path, shards, out)
    assert "no shard matches" in fails(capsys, run, tmp_path / "none", out)
    assert "--ratio" in fails(capsys, run, shards, out, "--ratio", "32")
    assert "choose another folder" in fails(capsys, run, shards, shards)
    assert "--base_url" in fails(capsys, run, shards, out, "--rewriter", "chat")
    server = ["--base_url", "http://127.0.0.1:1/v1", "--model", "m"]
    assert "chat needs --judge" in fails(capsys, run, shards, out, "--rewriter", "chat", *server)
    assert "--k" in fails(capsys, run, shards, out, "--k", "0")
    write_shards(tmp_path / "few", "train", list(samples.values())[:50], 100)
    error = fails(capsys, run, tmp_path / "few", out)
    assert "20 of the run's 70 queries" in error and "trained on" in error
    assert "even once" in fails(capsys, run, shards, out, "--threshold", "1.0")
    distil(folder, out)
    assert "begun with threshold 0.3" in fails(capsys, run, shards, out, "--threshold", "1.0")
    assert "other shards" in fails(capsys, run, shards, tmp_path / "few")


def test_other_settings_do_not_mix(world, capsys):
    folder = distil(world[0], "mixed")
    error = fails(capsys, world[0] / "run", world[0] / "shards", folder, "--k", "3")
    assert "begun with k 4" in error and "rewrites.json" in error


@pytest.mark.parametrize(
    ("content", "named"),
    [(b"no gzip", "cannot be read"), (gzip.compress(b"{", mtime=0), "cannot be read"),
     (gzip.compress(b'{"id": "a", "stream": "grounded"}', mtime=0), "line 1")],
)  # fmt: skip
def test_a_broken_record_is_named(world, tmp_path, capsys, content, named):
    record(tmp_path, [])
    (tmp_path / "rollouts" / "000001.jsonl.gz").write_bytes(content)
    error = fails(capsys, tmp_path, world[0] / "shards", tmp_path / "out")
    assert named in error and "000001.jsonl.gz" in error
