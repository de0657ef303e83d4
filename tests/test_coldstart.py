"""Cold-start data from shards: what each step holds, and training on it."""

import pytest
from conftest import make_sample
from test_cli import CONFIGS, fails
from transformers import AutoModelForImageTextToText

from ivgr.cli import main
from ivgr.data.coldstart import Steps, demonstrate
from ivgr.data.demonstration import write_boxes
from ivgr.data.shards import find_shards, write_shards
from ivgr.errors import UserError
from ivgr.families.frame import RELATIVE, Frame
from ivgr.world.write import World, draw_samples

BOTH = {"grounded": "see <box>[1,2,3,4]</box>", "textual": "see"}


@pytest.fixture
def shards(tmp_path):
    samples = [make_sample(f"s{i}", reasoning=BOTH) for i in range(20)]
    samples += [make_sample(f"t{i}", kind="single", boxes=(), reasoning={"textual": "so"}) for i in range(5)]
    write_shards(tmp_path / "d", "train", samples, 7)
    return find_shards(str(tmp_path / "d"))


def steps(shards, count=9, **options):
    found = Steps(shards, batch=5, steps=count, seed=1, shuffle=10, **options)
    return [[(d.sample.id, d.stream) for d in batch] for batch in found]


def test_an_epoch_holds_every_reasoning_once(shards):
    seen = sorted(d for batch in steps(shards) for d in batch)
    expected = [(f"s{i}", stream) for i in range(20) for stream in ("grounded", "textual")]
    assert seen == sorted(expected + [(f"t{i}", "single") for i in range(5)])


def test_ranks_share_each_step_and_a_resumed_run_goes_on(shards):
    whole = steps(shards, 20)
    ranks = [steps(shards, 20, rank=rank, ranks=2) for rank in range(2)]
    for batch, first, second in zip(whole, *ranks, strict=True):
        assert sorted(first + second) == sorted(batch)
    assert steps(shards, 20, start=12) == whole[12:]
    assert whole[:9] != whole[9:18]


def test_boxes_of_the_reasoning_are_written_in_the_frame():
    text = "a <box>[100,200,300.5,1000]</box> and <box>[0, 0, 500, 500]</box>, no [1,2,3,4]"
    assert write_boxes(text, RELATIVE) == text
    expected = "a <box>[20,10,60,50]</box> and <box>[0,0,100,25]</box>, no [1,2,3,4]"
    assert write_boxes(text, Frame(200.0, 50.0)) == expected


@pytest.mark.parametrize(
    "fields",
    [{}, {"reasoning": {"think": "x"}}, {"kind": "single", "boxes": (), "reasoning": BOTH}],
)
def test_a_sample_with_nothing_to_imitate_is_named(fields):
    with pytest.raises(UserError, match="sample s0"):
        demonstrate(make_sample(**fields))


def test_the_cold_start_config_trains_on_shards(capsys, tmp_path):
    """The shipped twin on a tiny checkpoint; what it writes is an ordinary HF directory."""
    main(["scratch", "qwen2_5_vl", "tiny", str(tmp_path / "m"), "--dtype", "float32"])
    for split in ("train", "val"):
        write_shards(tmp_path / split, split, draw_samples(World(split, 8, seed=3)), 4)
    args = [
        "fit", "--config", str(CONFIGS / "qwen25vl_7b_sft.yaml"), "--trainer.devices", "1",
        "--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(tmp_path / "run"),
        "--model.policy.path", str(tmp_path / "m"), "--model.engine.max_new_tokens", "4",
        "--data.train", str(tmp_path / "train"), "--data.val", str(tmp_path / "val"),
        "--data.workers", "0", "--data.val_queries", "2",
    ]  # fmt: skip
    assert "data.batch 32" in fails(capsys, *args)
    main([*args, "--data.batch", "4"])
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "model")
    assert model.config.model_type == "qwen2_5_vl"
