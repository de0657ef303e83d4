"""`ivgr study`: arms, streams, figures and report against independent truths; killed and resumed."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from ivgr.cli.main import main
from ivgr.core.errors import UserError
from ivgr.core.prompts import Prompts
from ivgr.data.encode import QueryEncoder
from ivgr.evaluation.held_out import HeldOutFigures
from ivgr.launch.lightning_cli import ParseOnly, run_lightning
from ivgr.models.pretrained import Pretrained
from ivgr.rollout.sampling import SamplingConfig
from ivgr.rollout.transformers_engine import TransformersEngine
from ivgr.tools.study.policy_report import ReportSettings, read_enough, report_on
from ivgr.tools.study.process_pool import Pool, Task
from ivgr.tools.study.study import plan_examination
from ivgr.tools.study.study_figure import draw
from ivgr.tools.study.study_report import Outcome, compare_arms, estimate_arms, write_results
from ivgr.tools.study.study_runs import Run, Training, check_same_settings, flatten, plan_runs
from ivgr.tools.study.variants import ARMS, LOCALIZATION, MEASURES, PAIRS
from ivgr.toy import PlaceAccuracy, RuleJudge
from ivgr.toy.world import World, write_world

TINY = Path(__file__).parents[3] / "configs" / "tiny.yaml"
TRAINED = [name for name, arm in ARMS.items() if arm.trained]


def parsed(arm, world):
    words = Training(TINY, 3, 40, 8, 1).words(Run(arm, 5, Path("run")), world)
    return flatten(run_lightning(words, ParseOnly).config["fit"].as_dict())


def test_arms_differ_in_what_they_declare_and_in_nothing_else(tmp_path):
    settings = {name: parsed(name, tmp_path) for name in TRAINED}
    own, changed = settings["archive"], {}
    for name, found in settings.items():
        assert found.keys() == own.keys() and found["seed_everything"] == 5
        changed[name] = {key.rpartition("init_args.")[2]: found[key] for key in own if found[key] != own[key]}
    assert own["model.init_args.iterations"] == 3 and own["data.init_args.prompts"] == 64
    assert changed == {
        "textual": {"streams": ["textual"], "consistency.weight": 0.0},
        "grounded": {"streams": ["grounded"], "consistency.weight": 0.0},
        "both": {"consistency.weight": 0.0},
        "consistency": {"persistent": False},
        "archive": {},
    }


def test_runs_come_seed_by_seed_and_the_tested_arms_have_all(tmp_path):
    runs = plan_runs(tmp_path, list(ARMS), 8, 3)
    count = {name: sum(run.arm == name for run in runs) for name in ARMS}
    assert count == {"cold": 1, "textual": 3, "grounded": 3, "both": 8, "consistency": 8, "archive": 3}
    assert {name for name, arm in ARMS.items() if arm.tested} == set(PAIRS[0])
    assert [run.arm for run in runs if run.seed is None] == ["cold"]
    assert all(a <= b for a, b in pairwise(run.seed for run in runs if run.seed is not None))
    assert len({run.folder for run in runs}) == len(runs)


def test_a_changed_setting_is_refused_and_named(tmp_path):
    check_same_settings(tmp_path, {"iterations": 2, "lr": 0.1})
    check_same_settings(tmp_path, {"iterations": 2, "lr": 0.1})
    with pytest.raises(UserError, match=r"study\.json: begun with lr 0\.1, now it is 0\.2"):
        check_same_settings(tmp_path, {"iterations": 2, "lr": 0.2})
    with pytest.raises(UserError, match="begun with clip None"):
        check_same_settings(tmp_path, {"iterations": 2, "lr": 0.1, "clip": 1})


def test_a_study_of_an_earlier_version_goes_on_under_the_new_names(tmp_path):
    """As db1b268 has saved it."""
    before = {
        "tiny.yaml: model.class_path": "ivgr.module.IVGR",
        "tiny.yaml: model.init_args.updates": 1,
        "tiny.yaml: model.init_args.engine.class_path": "ivgr.rollout.engine.TransformersEngine",
        "tiny.yaml: model.init_args.engine.init_args.max_new_tokens": 72,
        "tiny.yaml: model.init_args.judge.class_path": "ivgr.judge.RuleJudge",
    }
    now = {
        "tiny.yaml: model.class_path": "ivgr.IVGR",
        "tiny.yaml: model.init_args.update.mini_batches": 1,
        "tiny.yaml: model.init_args.engine.class_path": "ivgr.TransformersEngine",
        "tiny.yaml: model.init_args.engine.init_args.sampling.max_new_tokens": 72,
        "tiny.yaml: model.init_args.judge.class_path": "ivgr.toy.RuleJudge",
    }
    (tmp_path / "study.json").write_text(json.dumps(before))
    longer = now | {"tiny.yaml: model.init_args.engine.init_args.sampling.max_new_tokens": 80}
    with pytest.raises(UserError, match=r"engine\.sampling\.max_new_tokens 72, now it is 80"):
        check_same_settings(tmp_path, longer)
    check_same_settings(tmp_path, now)
    assert json.loads((tmp_path / "study.json").read_text()) == now


def test_policies_are_examined_with_the_prompts_of_the_config(tmp_path):
    config = yaml.safe_load(TINY.read_text())
    config["model"]["init_args"]["encoding"] = {"prompts": {"textual": "Say it in words."}}
    base = tmp_path / "own.yaml"
    base.write_text(yaml.safe_dump(config))
    asked = plan_examination(Training(base, 2, 40, 8, 1), tmp_path, 8)
    assert asked.prompts == {"textual": "Say it in words."} and asked.max_new_tokens == 72


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--arms", "both", "neither"], "neither"),
        (["--seeds", "2"], "--others"),
        (["--seeds", "21"], "20"),
        (["--iterations", "0"], "--iterations is 0, must be a whole number from 1"),
        (["--questions", "8"], "--probed"),
        (["--base", "no.yaml"], "no.yaml"),
        (["--base", str(TINY.with_name("tiny_sft.yaml"))], "TinyWorld"),
    ],
)
def test_misuse_is_one_line(capsys, tmp_path, words, named):
    with pytest.raises(SystemExit) as stop:
        main(["study", "--folder", str(tmp_path / "s"), *words])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and named in error


def test_an_examination_finds_what_evaluation_while_training_finds(tmp_path):
    write_world(tmp_path / "val", World("val", 40))
    wanted = ReportSettings("tiny", str(tmp_path / "val"), 24, 4, 72, {})
    figures = report_on(wanted)["figures"]
    policy, processor = Pretrained("tiny").load()
    encoder = QueryEncoder(processor, policy.config.model_type, Prompts())
    samples = read_enough(wanted.shards, 24)
    twice = [replace(sample, images=sample.images * 2) for sample in samples]

    def evaluate(samples):
        queries = [encoder(sample) for sample in samples]
        TransformersEngine(SamplingConfig(max_new_tokens=72)).answer(
            policy.eval(), processor.tokenizer, queries
        )
        held_out = HeldOutFigures(RuleJudge(), [PlaceAccuracy()])
        held_out.update(queries)
        return held_out.compute()

    truth = evaluate(samples)
    assert figures["twice/accuracy"] == pytest.approx(evaluate(twice)["textual"]["accuracy"])
    for stream, mode in (("textual", "text"), ("grounded", "grounded")):
        for name in ("accuracy", "format", "length"):
            assert figures[f"{mode}/{name}"] == pytest.approx(truth[stream][name])
    assert figures["text/place_accuracy"] == pytest.approx(truth["textual"]["place_accuracy"])
    assert figures["grounded/iou"] == pytest.approx(truth["grounded"]["iou"])
    assert 0 <= figures["tool/accuracy"] <= 1 and figures["tool/length"] > figures["grounded/length"]
    assert MEASURES.keys() <= figures.keys()
    with pytest.raises(UserError, match="holds 32 sound paired samples, 33"):
        read_enough(wanted.shards, 33)


def outcomes():
    """Consistency adds 0.1 to every measure on each of four seeds, the archive 0.2 on two."""
    base = {"both": (0.0, 4), "consistency": (0.1, 4), "archive": (0.2, 2)}
    found = [Outcome("cold", None, 0.0, dict.fromkeys(MEASURES, 0.3))]
    for arm, (gain, seeds) in base.items():
        for seed in range(seeds):
            found.append(Outcome(arm, seed, 6.0, dict.fromkeys(MEASURES, 0.4 + 0.01 * seed + gain)))
    return found


def test_the_report_by_hand(tmp_path):
    arms, differences = estimate_arms(outcomes()), compare_arms(outcomes())
    assert list(arms) == ["cold", "both", "consistency", "archive"]
    assert arms["both"]["text/accuracy"].mean == pytest.approx(0.415)
    assert [(d.arm, d.against) for d in differences[:: len(MEASURES)]] == list(PAIRS)
    for difference in differences:
        first = (difference.arm, difference.against) == PAIRS[0]
        gain, seeds = (0.1, 4) if first else (0.2 if difference.against == "both" else 0.1, 2)
        assert difference.estimate.mean == pytest.approx(gain) and difference.seeds == list(range(seeds))
        assert difference.p == 2 / 2**seeds
        tested = first and difference.measure in LOCALIZATION
        assert difference.adjusted == (3 * 2 / 16 if tested else None)
    text = write_results(tmp_path, {"iterations": 1}, outcomes(), arms, differences)
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["arms"]["cold"]["text/accuracy"] == {"mean": 0.3, "low": None, "high": None, "count": 1}
    assert len(saved["runs"]) == 11 and text == (tmp_path / "results.md").read_text()
    assert "| both streams | 4 | 0.415 [0.394, 0.436] |" in text
    draw(outcomes(), arms, differences, tmp_path / "results")
    assert (tmp_path / "results.png").stat().st_size > 10_000 and (tmp_path / "results.pdf").exists()


def test_what_a_probe_could_not_measure_is_left_out():
    found = outcomes()
    found[1] = Outcome("both", 0, 6.0, found[1].figures | {LOCALIZATION[0]: None})
    missing = found[0].figures | {LOCALIZATION[0]: None}
    arms = estimate_arms([Outcome("cold", None, 0.0, missing), *found[1:]])
    assert arms["cold"][LOCALIZATION[0]].count == 0 and arms["both"][LOCALIZATION[0]].count == 3
    first = [d for d in compare_arms(found) if (d.arm, d.against) == PAIRS[0]]
    seeds = {d.measure: d.seeds for d in first}
    assert seeds[LOCALIZATION[0]] == [1, 2, 3] and seeds[LOCALIZATION[1]] == [0, 1, 2, 3]
    adjusted = {d.measure: d.adjusted for d in first if d.measure in LOCALIZATION}
    assert adjusted == pytest.approx(dict(zip(LOCALIZATION, (0.375, 0.375, 0.375), strict=True)))


class Scripted(Pool):
    """Tasks are Python text."""

    def _start(self, task, log):
        return subprocess.Popen(
            [sys.executable, "-c", task.content["text"]], stdin=-1, stdout=log, stderr=log
        )


def test_a_failing_task_is_named_and_ends_the_others(tmp_path):
    slow = f"open({str(tmp_path / 'begun')!r}, 'w'); import time; time.sleep(60)"
    waits = f"import os\nwhile not os.path.exists({str(tmp_path / 'begun')!r}): pass\n"
    fails = waits + "raise SystemExit('ivgr: error: no')"
    texts = {"slow": slow, "fails": fails, "later": f"open({str(tmp_path / 'later')!r}, 'w')"}
    tasks = [Task(name, {"text": text}, tmp_path / f"{name}.log") for name, text in texts.items()]
    since = time.perf_counter()
    with pytest.raises(UserError, match=r"study: fails: no \(.*fails\.log\)"):
        Scripted(2, 1).run(tasks, lambda task: None)
    assert time.perf_counter() - since < 30 and not (tmp_path / "later").exists()


SMALL = f"""base: {TINY}
checkpoint_every: 1
model: {{init_args: {{engine: {{init_args: {{sampling: {{max_new_tokens: 24}}}}}}}}}}
data: {{init_args: {{prompts: 8, paired_ratio: 0.75}}}}
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The words of a study whose only run was killed, with the study, in its second iteration."""
    root = tmp_path_factory.mktemp("study")
    (root / "small.yaml").write_text(SMALL)
    words = ["study", "--folder", str(root / "s"), "--base", str(root / "small.yaml"), "--seeds", "1"]
    words += ["--others", "1", "--iterations", "2", "--scenes", "30", "--questions", "8", "--probed", "4"]
    process = subprocess.Popen([sys.executable, "-m", "ivgr", *words, "--arms", "textual"])
    first = root / "s" / "textual" / "0" / "checkpoints" / "last.ckpt"
    while not first.exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return words, root / "s"


@pytest.mark.slow
def test_a_killed_study_goes_on_and_keeps_what_is_finished(capsys, killed):
    words, folder = killed
    run = folder / "textual" / "0"
    began = (run / "rollouts" / "000001.jsonl.gz").stat().st_mtime_ns
    main([*words, "--arms", "textual"])
    assert (run / "rollouts" / "000001.jsonl.gz").stat().st_mtime_ns == began
    assert json.loads((run / "trained.json").read_text())["iterations"] == 2
    weights = run / "policy" / "model.safetensors"
    kept = weights.stat().st_mtime_ns
    capsys.readouterr()
    main([*words, "--arms", "cold", "textual"])
    said = capsys.readouterr().out
    assert weights.stat().st_mtime_ns == kept and "trained" not in said
    assert "examined 1 of 1: cold start" in said
    results = json.loads((folder / "results.json").read_text())
    assert [(one["arm"], one["seed"]) for one in results["runs"]] == [("cold", None), ("textual", 0)]
    assert [one["minutes"] > 0 for one in results["runs"]] == [False, True]
    with pytest.raises(SystemExit):
        main([*words, "--iterations", "3"])
    assert "begun with iterations 2, now it is 3" in capsys.readouterr().err


@pytest.mark.parametrize("arm", ["textual", "grounded"])
def test_an_arm_of_one_stream_samples_as_much_in_it_alone(tmp_path, arm):
    """8 prompts x 5 responses, three of four prompts paired."""
    (tmp_path / "small.yaml").write_text(SMALL)
    training = Training(tmp_path / "small.yaml", 1, 30, 8, 1)
    training.draw_world(tmp_path / "world")
    main(training.words(Run(arm, 0, tmp_path / "run"), tmp_path / "world"))
    [path] = (tmp_path / "run" / "rollouts").glob("*.gz")
    rows = gzip.decompress(path.read_bytes()).splitlines()
    assert [json.loads(row)["stream"] for row in rows] == [arm] * 30 + ["single"] * 10


def test_a_stream_that_is_none_is_named(capsys, tmp_path):
    words = ["fit", "--config", str(TINY), "--trainer.default_root_dir", str(tmp_path), "--data.streams"]
    for streams in ("[]", "[single]", "[textual,textual]"):
        with pytest.raises(SystemExit):
            main([*words, streams])
        assert "data.streams is" in capsys.readouterr().err
