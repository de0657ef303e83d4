"""The offline filter: pass rates against counting, interrupted and not, of a stub and of the tiny policy."""

import json
import random
from collections import Counter

import pytest
import torch

from ivgr.cli.main import main
from ivgr.core.errors import UserError
from ivgr.core.prompts import Prompts
from ivgr.core.query import Group, Query, Rollout
from ivgr.core.response import format_reward
from ivgr.core.resumable_jsonl import ResumableJsonl
from ivgr.core.sample import read_sample
from ivgr.data.shards import find_shards, read_shards, write_shards
from ivgr.models.pretrained import Pretrained
from ivgr.rewards.accuracy import read_accuracy
from ivgr.rollout.sampling import SamplingConfig
from ivgr.rollout.transformers_engine import TransformersEngine
from ivgr.tools.filter import make_respond, measure_rates, pass_rates, select
from ivgr.toy import RuleJudge
from ivgr.toy.world import World, draw_samples
from support.samples import RELATIVE, make_sample, response

GOOD = (response("Seen."), response("", "Red."))
BAD = (response("Seen.", "blue"), "red", response("<box>[1,2,3,4]</box>"), response("Seen.") + "!")


class Stub:
    """Answers sample i of n rightly with probability i/(n-1); keeps what it said."""

    def __init__(self, count, copies, stop_after=None):
        self.count, self.copies, self.stop_after = count, copies, stop_after
        self.asked, self.right = [], {}

    def __call__(self, samples, seed):
        if self.stop_after is not None and len(self.asked) + len(samples) > self.stop_after:
            raise KeyboardInterrupt
        rng = random.Random(seed)
        self.asked += [sample.id for sample in samples]
        return [self.answer(sample, rng) for sample in samples]

    def answer(self, sample, rng):
        probability = int(sample.id) / (self.count - 1)
        right = [rng.random() < probability for _ in range(self.copies)]
        self.right[sample.id] = sum(right)
        texts = [rng.choice(GOOD if passed else BAD) for passed in right]
        none = torch.zeros(1)
        rollouts = [Rollout(none, none, none, text, truncated=False) for text in texts]
        stream = "textual" if sample.kind == "paired" else "single"
        return Query(sample, none, [Group(stream, none, rollouts)], sample.boxes, RELATIVE)


COUNT, COPIES = 41, 16


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    kinds = [{"kind": "single", "boxes": ()} if i % 5 == 4 else {} for i in range(COUNT)]
    samples = [make_sample(str(i), **kind, source="mine") for i, kind in enumerate(kinds)]
    return [str(path) for path in write_shards(folder, "train", samples, 9)]


def measure(shards, folder, stub, batch=6):
    journal = ResumableJsonl(folder, "pass_rates", {"batch": batch})
    measure_rates(shards, COUNT, journal, stub, RuleJudge(), batch, seed=2)
    return journal


def test_rates_are_the_share_of_good_answers(shards, tmp_path):
    stub = Stub(COUNT, COPIES)
    rows = measure(shards, tmp_path, stub).rows
    assert [row["id"] for row in rows] == [str(i) for i in range(COUNT)]
    assert {row["id"]: row["rate"] * COPIES for row in rows} == stub.right
    assert [json.loads(line) for line in (tmp_path / "pass_rates.jsonl").read_text().splitlines()] == rows
    error = sum(abs(row["rate"] - i / (COUNT - 1)) for i, row in enumerate(rows)) / COUNT
    assert rows[0]["rate"] == 0 and rows[-1]["rate"] == 1 and error < 0.15


@pytest.mark.parametrize("bounds", [(0.1, 0.9), (0.0, 0.0), (0.25, 0.5), (1.0, 1.0)])
def test_selected_are_those_within_the_bounds_as_they_were(shards, tmp_path, bounds):
    stub = Stub(COUNT, COPIES)
    rows = measure(shards, tmp_path, stub).rows
    originals = {sample.id: sample for sample in map(read_sample, read_shards(shards))}
    within = [name for name in originals if bounds[0] * COPIES <= stub.right[name] <= bounds[1] * COPIES]
    write_shards(tmp_path / "kept", "train", select(shards, rows, *bounds), 7)
    kept = [read_sample(e) for e in read_shards(find_shards(str(tmp_path / "kept")))]
    assert within and kept == [originals[name] for name in within]


@pytest.mark.parametrize("stop_after", [0, 5, 13, 30, 40])
def test_an_interrupted_measurement_ends_as_the_unbroken_one(shards, tmp_path, stop_after):
    whole = measure(shards, tmp_path / "whole", Stub(COUNT, COPIES)).rows
    with pytest.raises(KeyboardInterrupt):
        measure(shards, tmp_path / "broken", Stub(COUNT, COPIES, stop_after))
    path = tmp_path / "broken" / "pass_rates.jsonl"
    path.write_bytes(path.read_bytes()[:-3])
    rest = Stub(COUNT, COPIES)
    assert measure(shards, tmp_path / "broken", rest).rows == whole
    done = max(stop_after // 6 * 6 - 6, 0)
    assert rest.asked == [str(i) for i in range(done, COUNT)]
    assert path.read_bytes() == (tmp_path / "whole" / "pass_rates.jsonl").read_bytes()


def test_shards_that_have_changed_are_noticed(shards, tmp_path):
    rows = measure(shards, tmp_path, Stub(COUNT, COPIES)).rows
    with pytest.raises(UserError, match="0 where the shards now hold 1"):
        list(select(shards, [rows[0], rows[0], *rows[2:]], 0, 1))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_shards(folder / "shards", "train", draw_samples(World("train", 10, seed=6)), 4)
    return folder


def run_filter(world, name, *options):
    short = ["--copies", "4", "--batch", "4", "--max_new_tokens", "40"]
    main(["filter", str(world / "shards"), str(world / name), *short, *options])
    return world / name


def test_the_tiny_policy_is_measured_and_other_bounds_measure_nothing_anew(world, monkeypatch, capsys):
    folder = run_filter(world, "kept", "--lowest", "0.2", "--highest", "0.8")
    rates = {row["id"]: row["rate"] for row in map(json.loads, (folder / "pass_rates.jsonl").open())}
    kept = [read_sample(entry) for entry in read_shards(find_shards(str(folder)))]
    originals = list(map(read_sample, read_shards(find_shards(str(world / "shards")))))
    assert kept == [sample for sample in originals if 0.2 <= rates[sample.id] <= 0.8]
    assert len(rates) == len(originals) == 10 and set(rates.values()) <= {0, 0.25, 0.5, 0.75, 1}
    counts = Counter((rate > 0.8) - (rate < 0.2) for rate in rates.values())
    table = capsys.readouterr().out
    assert all(f"│ {counts[side]}" in table for side in (-1, 0, 1))
    monkeypatch.setattr("ivgr.tools.filter.make_respond", None)
    run_filter(world, "kept", "--lowest", "0", "--highest", "1")
    assert len(list(read_shards(find_shards(str(folder))))) == 10


@pytest.mark.parametrize("stream", ["textual", "grounded"])
def test_rates_equal_a_count_over_the_engines_own_rollouts(world, stream):
    samples = list(draw_samples(World("train", 6, seed=6)))
    respond = make_respond(
        Pretrained("tiny"),
        TransformersEngine(SamplingConfig(group_size=3, max_new_tokens=72)),
        Prompts(),
        stream,
    )
    queries = respond(samples, 1)
    asked = [stream if sample.kind == "paired" else "single" for sample in samples]
    assert [[group.stream for group in query.groups] for query in queries] == [[name] for name in asked]
    counted = []
    for query, name in zip(queries, asked, strict=True):
        texts = [rollout.text for rollout in query.groups[0].rollouts]
        good = [
            format_reward(text) and read_accuracy(query.sample, text) == 1
            and (name == "grounded" or "<box>" not in text)
            for text in texts
        ]  # fmt: skip
        counted.append(sum(good) / 3)
    assert pass_rates(queries, RuleJudge()) == pytest.approx(counted)
    assert 0 < sum(counted) < 6


def test_without_a_judge_an_answer_that_no_rule_matches_is_wrong(world, capsys):
    folder = run_filter(world, "alone", "--lowest", "0", "--highest", "1")
    judged = run_filter(world, "judged", "--lowest", "0", "--highest", "1", "--judge", "ivgr.toy.RuleJudge")
    rates = [(one / "pass_rates.jsonl").read_text() for one in (folder, judged)]
    assert rates[0] == rates[1] and capsys.readouterr().out.count("no judge is named") == 1


def fails(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main(["filter", *map(str, args)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    return error


def test_misuse_is_one_clear_line(world, tmp_path, capsys):
    shards = world / "shards"
    assert "no shard matches" in fails(capsys, tmp_path / "none", tmp_path / "out")
    assert "--lowest" in fails(capsys, shards, tmp_path / "out", "--lowest", "0.9", "--highest", "0.1")
    assert "--copies" in fails(capsys, shards, tmp_path / "out", "--copies", "1")
    assert "choose another folder" in fails(capsys, shards, shards)
    assert "model.policy" in fails(capsys, shards, tmp_path / "out", "--policy", "/no/such")
    folder = run_filter(world, "used", "--lowest", "0", "--highest", "1")
    assert "begun with copies 4" in fails(capsys, shards, folder, "--copies", "8", "--batch", "4")
    narrow = [
        "--copies",
        "4",
        "--batch",
        "4",
        "--max_new_tokens",
        "40",
        "--lowest",
        "0.3",
        "--highest",
        "0.3",
    ]
    assert "widen the bounds" in fails(capsys, shards, folder, *narrow)
    assert len(list(read_shards(find_shards(str(folder))))) == 10
