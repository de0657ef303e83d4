"""A reward term of a user's own: one entry of a config, and it is everywhere."""

import gzip
import json

import pytest

from ivgr.callbacks.progress import IterationBar
from ivgr.cli.main import main
from ivgr.core.errors import UserError
from ivgr.judge import Agreement
from ivgr.plotting.event_files import read_curves
from ivgr.rewards.rewards import Rewards
from ivgr.rewards.scorer import Scorer
from ivgr.toy import RuleJudge
from support.command_line import TINY, fails
from support.samples import make_query, make_rollout, make_sample, response


class Brevity:
    """1 for an empty response, 0 from `limit` tokens on."""

    def __init__(self, streams: list[str], weight: float = 1.0, limit: int = 100) -> None:
        self.streams = streams
        self.weight = weight
        self.limit = limit

    def __call__(self, rollout, query) -> float:
        return max(0.0, 1 - len(rollout.tokens) / self.limit)


class Doubt:
    """Whatever the judge says of the whole text."""

    streams = ("textual",)
    weight = 2.0

    def __call__(self, rollout, query) -> Agreement:
        return Agreement(query.sample, rollout.text)


SETTINGS = {
    "class_path": "test_own_term.Brevity",
    "init_args": {"streams": ["textual", "grounded"], "weight": 0.5, "limit": 200},
}
SHORT = (
    "--model.iterations", "1", "--data.train_count", "60", "--data.val_count", "8", "--data.val_queries", "2",
    "--data.prompts", "8", "--model.engine.sampling.group_size", "2",
)  # fmt: skip


def test_one_entry_is_in_the_sum_the_record_the_tags_and_the_progress(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(IterationBar.__init__, "__defaults__", (1,))  # a line for each iteration
    more = json.dumps({"brevity": SETTINGS})
    root = ("--trainer.default_root_dir", str(tmp_path))
    main(["fit", "--config", TINY, *root, *SHORT, "--model.rewards.more", more])
    rows = gzip.decompress((tmp_path / "rollouts" / "000001.jsonl.gz").read_bytes()).decode().splitlines()
    rows = [json.loads(row) for row in rows]
    paired = [row for row in rows if row["stream"] != "single"]
    assert paired and all("brevity" not in row["terms"] for row in rows if row["stream"] == "single")
    for row in paired:
        terms = row["terms"]
        assert terms["brevity"] == pytest.approx(max(0, 1 - len(row["tokens"]) / 200))
        counted = ("format", "accuracy", "box" if row["stream"] == "grounded" else "consistency")
        assert row["reward"] == pytest.approx(sum(terms[name] for name in counted) + terms["brevity"] / 2)
    curves = read_curves(tmp_path)
    for stream in ("grounded", "textual"):
        own = [row["terms"]["brevity"] for row in paired if row["stream"] == stream]
        (value,) = curves[f"{stream}/reward/brevity"].values
        assert value == pytest.approx(sum(own) / len(own), rel=1e-5)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("iteration 1/1"))
    assert "brevity g" in line and "brevity t" in line


def test_a_term_that_asks_the_judge_waits_for_its_verdict():
    query = make_query(make_sample(), textual=[make_rollout(response("Hm.", "red"))])
    judge = RuleJudge()
    judge.agree = lambda questions: [True for _ in questions]
    Scorer(Rewards(more={"doubt": Doubt()}), judge).score([query])
    (rollout,) = query.groups[0].rollouts
    assert rollout.terms["doubt"] == 1.0
    assert rollout.reward == rollout.terms["format"] + rollout.terms["accuracy"] + 2.0
    judge.agree = lambda questions: [None for _ in questions]
    Scorer(Rewards(more={"doubt": Doubt()}), judge).score([query])
    assert "doubt" not in rollout.terms and rollout.reward is None


def test_a_name_that_is_taken_and_a_class_that_is_no_term_are_one_line(capsys):
    with pytest.raises(UserError, match=r"model.rewards.more: box is the name of a term already"):
        Rewards(more={"box": Doubt()})
    more = json.dumps({"mine": {"class_path": "ivgr.core.errors.UserError"}})
    assert "model.rewards" in fails(capsys, "fit", "--config", TINY, "--model.rewards.more", more)
