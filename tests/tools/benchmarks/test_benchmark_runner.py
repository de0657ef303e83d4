"""Rows asked and scored, a judge for the doubtful ones, rows that cannot be asked."""

import math
from dataclasses import replace

import pytest
import torch

from ivgr.core.prompts import Prompts
from ivgr.core.rejection import RejectedSample
from ivgr.core.resumable_jsonl import ResumableJsonl
from ivgr.data.encode import QueryEncoder
from ivgr.models.patch_embed import use_linear_patches
from ivgr.models.pretrained import Pretrained
from ivgr.rollout.sampling import SamplingConfig
from ivgr.rollout.transformers_engine import TransformersEngine
from ivgr.tools.benchmarks.benchmark_runner import BenchmarkRunner, respond_to_each
from ivgr.tools.benchmarks.benchmarks import BENCHMARKS
from ivgr.tools.benchmarks.fields import Row
from ivgr.tools.benchmarks.tables import figures_of, notes_of
from ivgr.tools.inference.modes import Reply, respond
from ivgr.tools.inference.parse_reply import read_parts
from support.samples import RecordingJudge, jpeg, make_sample


def reply_with(answers):
    left = iter(answers)
    return lambda samples: [read(next(left)) for _ in samples]


def read(text):
    parts = read_parts(text)
    return Reply(text, parts.think, parts.answer, parts.source)


def examine(tmp_path, rows, answers, judge=None, name="vstar"):
    class File:
        total = len(rows)

        def read(self, numbers):
            return (row for number, row in enumerate(rows) if number in numbers)

    journal = ResumableJsonl(tmp_path, name, {})
    BenchmarkRunner(BENCHMARKS[name], reply_with(answers), "Think.", judge, batch=2).fill(journal, File(), "")
    return journal.rows


ROW = Row("0", "What is it?", "B", {"A": "cat", "B": "dog"}, images=(jpeg(),))


def test_options_are_asked_in_lines_and_the_prompt_is_kept(tmp_path):
    (row,) = examine(tmp_path, [ROW], ["<think>x</think><answer>B</answer>"])
    assert row["prompt"].startswith("What is it?\nA. cat\nB. dog\n") and row["prompt"].endswith("\nThink.")
    assert (row["verdict"], row["reasoning"], row["predicted"], row["why"]) == (True, "x", "B", "option")
    listed = Row("0", "What is it?\nA. cat\nB. dog", "B", ROW.options, listed=True)
    assert listed.ask(BENCHMARKS["vstar"]).question.count("A. cat") == 1
    assert ROW.ask(BENCHMARKS["vstar"], openly=True).question == "What is it?"
    assert "yes or no" in Row("0", "Is it?", "Yes").ask(BENCHMARKS["pope"]).question


def test_the_judge_is_asked_only_what_no_rule_decides(tmp_path):
    answers = ["B", "a hound", "", "<answer></answer>", "A", "cat or dog"]
    judge = RecordingJudge(agrees=True)
    rows = examine(tmp_path / "a", [ROW] * 6, answers, judge)
    assert judge.answers == ["a hound", "cat or dog"]
    assert [row["verdict"] for row in rows] == [True, True, False, False, False, True]
    assert rows[1]["why"] == "judge"
    rows = examine(tmp_path / "b", [ROW] * 6, answers)
    assert [row["verdict"] for row in rows] == [True, False, False, False, False, False]
    rows = examine(tmp_path / "c", [ROW] * 6, answers, RecordingJudge(agrees=None))
    assert [row["verdict"] for row in rows] == [True, None, False, False, False, None]


def test_a_row_that_cannot_be_asked_is_wrong_and_says_why():
    model, processor = Pretrained("tiny").load()
    encoder = QueryEncoder(processor, model.config.model_type, Prompts())
    engine = TransformersEngine(SamplingConfig(max_new_tokens=5))
    good, bad = (make_sample(n, kind="single", boxes=()) for n in ("good", "bad"))
    bad = replace(bad, images=(b"no image",))
    found = respond_to_each(
        lambda s: respond(model, encoder, engine, s, "text"), [good, good, bad, good, good]
    )
    assert [isinstance(reply, RejectedSample) for reply in found] == [False, False, True, False, False]
    assert "sample bad" in str(found[2]) and len({reply.text for n, reply in enumerate(found) if n != 2}) == 1


def test_a_rejected_row_stands_in_the_table(tmp_path):
    def refuse(samples):
        raise RejectedSample("sample 0: no image")

    class File:
        total = 1

        def read(self, numbers):
            return iter([ROW])

    journal = ResumableJsonl(tmp_path, "vstar", {})
    BenchmarkRunner(BENCHMARKS["vstar"], refuse, "").fill(journal, File(), "")
    (row,) = journal.rows
    assert row["verdict"] is False and row["why"] == "rejected: sample 0: no image"


def test_patches_embedded_by_a_product_are_those_of_the_convolution():
    model, _ = Pretrained("tiny").load()
    embed, names = model.model.visual.patch_embed, set(model.state_dict())
    patches = torch.randn(50, 3 * 2 * 14 * 14)
    expected = embed(patches)
    use_linear_patches(model)
    assert not isinstance(embed.proj, torch.nn.Conv3d) and set(model.state_dict()) == names
    torch.testing.assert_close(embed(patches), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("odd", [math.nan, 0.7, "yes"])
def test_what_is_no_verdict_leaves_the_row_unjudged(tmp_path, odd):
    rows = examine(tmp_path, [ROW] * 2, ["B", "a hound"], RecordingJudge(agrees=odd))
    assert [row["verdict"] for row in rows] == [True, None]


def test_a_row_with_a_fault_is_not_asked_and_counts_as_wrong(tmp_path):
    bad = replace(ROW, gold="", options={}, fault="row 2: no answer; fill the column answer")
    rows = examine(tmp_path, [ROW, bad, bad, bad, ROW], ["B", "A"])
    assert [row["verdict"] for row in rows] == [True, False, False, False, False]
    assert [row["why"] for row in rows[1:4]] == [f"rejected: {bad.fault}"] * 3
    assert notes_of(rows, "text")["rejected"] == 3
    assert figures_of(rows, "vstar")[0].value == 20


def test_mathematics_that_was_given_up_is_not_equal_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("ivgr.tools.benchmarks.scoring.compare_math", lambda answer, gold: None)
    row = Row("0", "How many?", "5", images=(jpeg(),))
    alone = examine(tmp_path / "a", [row] * 2, ["9!!!", "5"], name="mathvista")
    assert [line["verdict"] for line in alone] == [False, True]
    judged = examine(tmp_path / "b", [row] * 2, ["9!!!", "5"], RecordingJudge(agrees=True), "mathvista")
    assert [line["verdict"] for line in judged] == [True, True]
    assert [notes_of(lines, "text")["given_up"] for lines in (alone, judged)] == [1, 1]


def test_a_box_is_asked_for_and_compared(tmp_path):
    row = Row("0", "The dog", "[64.0, 48.0, 320.0, 240.0] of 640.0 x 480.0", images=(jpeg(),))
    assert "[x1, y1, x2, y2]" in row.ask(BENCHMARKS["refcoco"]).question
    answers = ["<answer><box>[100, 100, 500, 500]</box></answer>", "[0.1 0.1 0.5 0.5]", "1 1 2 2", "none"]
    rows = examine(tmp_path, [row] * 4, answers, name="refcoco")
    assert [line["verdict"] for line in rows] == [True, True, False, False]
