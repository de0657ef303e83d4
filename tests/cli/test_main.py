"""The command line: every misuse is one clear line, and help is there."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from ivgr.cli.main import main
from ivgr.data.shards import write_shards
from ivgr.toy.world import World, draw_samples
from support.command_line import CONFIGS, TINY, fails

LESSONS = '--data.lessons=[{"steps": 1, "fewest": 1, "most": 1, "describe": 4}]'


@pytest.fixture
def shards(tmp_path):
    def write(change=None, count=30, name="train"):
        samples = list(draw_samples(World("train", count, seed=3)))
        if change:
            samples[1] = change(samples[1])
        return str(write_shards(tmp_path / name, name, samples, 100)[0].parent)

    return write


def fit_on(train, val, root):
    return [
        "fit", "--config", TINY, "--trainer.default_root_dir", str(root),
        "--data", "ivgr.data.datamodule.ShardDataModule", "--data.train", train, "--data.val", val,
        "--data.prompts", "8", "--data.paired_ratio", "0.9", "--model.iterations", "1",
        "--data.val_queries", "4", "--model.engine.sampling.max_new_tokens", "4",
    ]  # fmt: skip


def changed(**fields):
    def change(sample):
        values = vars(sample) | fields
        return type(sample)(**values)

    return change


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--model.optimiser.lr", "1"], "optimiser"),
        (["--model.iterations", "many"], "iterations"),
        (["--data.promts", "4"], "promts"),
        (["--model.update.loss.kl", "k7"], "model.update.loss.kl"),
        (["--model.update.schedule.name", "cosin"], "model.update.schedule.name is cosin, must be"),
        (["--model.engine.sampling.group_size", "1"], "group_size"),
        (["--model.policy", "/no/such/model"], "model.policy"),
        (["--data.paired_ratio", "1.5"], "paired_ratio"),
        (["--config", "/no/such/file.yaml"], "/no/such/file.yaml"),
        (["--ckpt_path", "/no/such.ckpt"], "/no/such.ckpt"),
        (["--trainer.precision", "bf16-mixed"], "trainer.precision"),
        (["--trainer.default_root_dir", str(TINY)], "trainer.default_root_dir is"),
        (["--trainer.default_root_dir", f"{TINY}/run"], "tiny.yaml is a file"),
    ],
)
def test_a_bad_setting_is_named(capsys, tmp_path, args, named):
    world = [
        "--data.train_count",
        "20",
        "--data.val_count",
        "10",
        "--trainer.default_root_dir",
        str(tmp_path),
    ]
    assert named in fails(capsys, "fit", "--config", TINY, *world, *args)


def test_an_unknown_command_lists_the_known(capsys):
    assert "fit" in fails(capsys, "fti")


def test_missing_shards_are_named(capsys, tmp_path, shards):
    error = fails(capsys, *fit_on(str(tmp_path / "nowhere-*.tar"), shards(), tmp_path))
    assert "nowhere" in error and "no shard" in error


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"answer": ""}, "answer"), ({"images": ()}, "no image"), ({"boxes": ()}, "boxes")],
)
def test_a_bad_sample_is_named_at_set_up(capsys, tmp_path, shards, fields, named):
    error = fails(capsys, *fit_on(shards(changed(**fields)), shards(name="val"), tmp_path))
    assert named in error and "train-000000.tar" in error and "00000001" in error


def test_a_broken_jpeg_is_left_out_and_listed(tmp_path, shards):
    train = shards(changed(images=(b"\xff\xd8 not a picture",)), count=6)
    root = tmp_path / "run"
    main([*fit_on(train, shards(name="val"), root), "--data.prompts", "20", "--data.paired_ratio", "1"])
    [line] = map(json.loads, (root / "quarantine.jsonl").read_text().splitlines())
    assert "image 0 cannot be read" in line["message"] and line["reason"].startswith("image: ")
    assert line["id"].startswith("tiny-train") and line["key"] == "00000001"


@pytest.mark.slow
def test_sources_are_dealt_by_weight(tmp_path, shards):
    """Three of four queries from the first source, after every iteration."""
    first, second = shards(name="first"), shards(lambda sample: sample, name="second")
    sources = json.dumps([{"path": first, "weight": 3}, {"path": [second + "/*.tar"], "weight": 1}])
    ran = ["--data.prompts", "8", "--data.paired_ratio", "1", "--model.iterations", "3"]
    main([*fit_on(sources, shards(name="val"), tmp_path / "run"), *ran])
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["ShardDataModule"]
    assert state["order"]["the weights of data.train"] == [3, 1]
    assert len(state["order"]["the shards of data.train"]) == 2


@pytest.mark.parametrize(
    ("train", "named"),
    [
        ("[]", "at least one source"),
        ('[{"path": "PATH", "weight": 0}]', "data.train.weight is 0, must be a number above 0"),
        ('[{"path": "PATH", "weight": -1}]', "data.train.weight is -1, must be a number above 0"),
        ('[{"path": "PATH"}, {"path": "nowhere.tar"}]', "nowhere.tar"),
        ("pipe:cat PATH/*.tar", "data.allow_pipe"),
        ("http://127.0.0.1:9/train-*.tar", "brace range"),
    ],
)
def test_a_bad_source_is_named(capsys, tmp_path, shards, train, named):
    error = fails(capsys, *fit_on(train.replace("PATH", shards()), shards(name="val"), tmp_path))
    assert named in error


def test_a_limit_that_is_no_share_is_named(capsys, tmp_path, shards):
    error = fails(capsys, *fit_on(shards(), shards(name="val"), tmp_path), "--data.max_rejected", "1.5")
    assert "max_rejected" in error


@pytest.mark.slow
def test_reader_processes_bring_back_what_they_rejected(tmp_path, shards):
    train = shards(changed(images=(b"",)), count=6)
    write_shards(Path(train), "more", draw_samples(World("train", 6, seed=4)), 100)
    root = tmp_path / "run"
    ran = ["--data.prompts", "24", "--data.paired_ratio", "1", "--data.workers", "2"]
    main([*fit_on(train, shards(name="val"), root), *ran])
    [line] = map(json.loads, (root / "quarantine.jsonl").read_text().splitlines())
    assert line["reason"] == "image: empty"


def test_a_split_without_singles_names_the_ratio(capsys, tmp_path):
    samples = [s for s in draw_samples(World("train", 30, seed=3)) if s.kind == "paired"]
    folder = str(write_shards(tmp_path / "paired", "train", samples, 100)[0].parent)
    args = fit_on(folder, folder, tmp_path)
    assert "paired_ratio" in fails(capsys, *args, "--data.paired_ratio", "0.5")


def test_too_few_shards_for_the_readers(capsys, tmp_path, shards):
    error = fails(capsys, *fit_on(shards(), shards(name="val"), tmp_path), "--data.workers", "2")
    assert "1 shards for 2 readers" in error


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_prints_and_round_trips(capsys, tmp_path, config):
    printed = []
    source = config
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            main(["fit", "--config", str(source), "--print_config"])
        assert stop.value.code == 0
        printed.append(capsys.readouterr().out)
        source = tmp_path / "printed.yaml"
        source.write_text(printed[-1])
    assert printed[0] == printed[1] and yaml.safe_load(printed[0])["model"]["class_path"].startswith("ivgr.")


def test_synth_draws_once_and_refuses_to_mix(capsys, tmp_path):
    args = ["synth", str(tmp_path / "w"), "--split", "train", "--count", "12"]
    main(args)
    before = (tmp_path / "w" / "train-000000.tar").read_bytes()
    main(args)
    assert (tmp_path / "w" / "train-000000.tar").read_bytes() == before
    assert "other settings" in fails(capsys, *args[:-1], "13")
    assert "split" in fails(capsys, "synth", str(tmp_path / "v"), "--split", "test", "--count", "1")


def test_help_names_every_command(capsys):
    main(["--help"])
    text = capsys.readouterr().out
    commands = ("fit", "validate", "ask", "plan", "scratch", "synth", "archive", "pack", "inspect", "export")
    assert all(f"ivgr {command}" in text for command in commands)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--checkpoint_best", "val/textual/acuracy"], "checkpoint_best is val/textual/acuracy"),
        (
            ["--data", "ivgr.toy.curriculum.Curriculum", LESSONS, "--data.val_count", "4"],
            "IVGR cannot learn",
        ),
        (
            [
                "--trainer.callbacks",
                "ivgr.tools.probes.probe_callback.Probing",
                "--trainer.callbacks.streams",
                "[no]",
            ],
            "streams",
        ),
    ],
)
def test_what_does_not_go_together_is_named_before_anything_is_trained(capsys, tmp_path, args, named):
    config = tmp_path / "config.yaml"
    config.write_text(Path(TINY).read_text().partition("\ndata:")[0] + "\n")
    data = [] if "--data" in args else ["--data", "ivgr.toy.tiny_world.TinyWorld", "--data.train_count", "20"]
    root = ["--trainer.default_root_dir", str(tmp_path / "run")]
    assert named in fails(capsys, "fit", "--config", str(config), *root, *data, *args)
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_data_without_demonstrations_is_no_cold_start(capsys, tmp_path):
    words = [
        "--model",
        "ivgr.SFT",
        "--model.policy",
        "tiny",
        "--data",
        "ivgr.toy.TinyWorld",
        "--data.train_count",
        "20",
    ]
    root = ["--trainer.default_root_dir", str(tmp_path)]
    assert "TinyWorld, of which SFT cannot learn" in fails(capsys, "fit", *words, *root)
