"""Whatever a data set holds, training goes on, and what was left out is counted by reason."""

import gzip
import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ivgr.cli.main import main
from ivgr.core.prompts import Prompts
from ivgr.core.rejection import Rejection
from ivgr.data.encode import QueryEncoder, encode_batch
from ivgr.data.stream import BatchComposition, SampleStream, WeightedSource
from ivgr.models.pretrained import Pretrained
from ivgr.toy.world import World, write_world
from support.hostile import HOSTILE, usable, write_tar

TINY = str(Path(__file__).parents[2] / "configs" / "tiny.yaml")


@pytest.fixture(scope="module")
def encoder() -> QueryEncoder:
    return QueryEncoder(Pretrained("tiny").load()[1], "qwen2_vl", Prompts())


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, encoder) -> dict[str, str]:
    """What became of each key in one epoch: "" for a query, or the reason."""
    shard = write_tar(tmp_path_factory.mktemp("hostile") / "train-000000.tar", HOSTILE)
    [drawn] = islice(SampleStream([WeightedSource([shard])], BatchComposition(len(HOSTILE), 0), 0, 30), 1)
    batch = encode_batch(drawn, encoder)
    keys = {item.sample.id: item.key for item in drawn if not isinstance(item, Rejection)}
    assert batch.seen == len(HOSTILE) == len(batch.queries) + len(batch.rejected)
    return {rejection.key: rejection.reason for rejection in batch.rejected} | {
        keys[query.sample.id]: "" for query in batch.queries
    }


def test_there_are_some_three_hundred():
    assert len(HOSTILE) >= 290


@pytest.mark.parametrize("index", range(len(HOSTILE)), ids=[entry.name[:40] for entry in HOSTILE])
def test_each_is_used_or_rejected_for_its_reason(outcome, index):
    assert outcome[HOSTILE[index].key_at(index)] in (HOSTILE[index].reasons or ("",))


def fit(root: Path, train: Path, *options: str) -> None:
    if not (root / "val").exists():
        write_world(root / "val", World("val", 12))
    main([
        "fit", "--config", TINY, "--trainer.default_root_dir", str(root), "--checkpoint_every", "1",
        "--data", "ivgr.data.datamodule.ShardDataModule", "--data.train", str(train),
        "--data.val", str(root / "val"), "--data.paired_ratio", "1", "--data.val_queries", "4",
        "--model.engine.sampling.max_new_tokens", "2", "--model.engine.sampling.group_size", "2",
        "--model.encoding.max_prompt_tokens", "300", *options,
    ])  # fmt: skip


def scalars(root: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(root), size_guidance={"scalars": 0}).Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_training_goes_on_and_counts_every_reason(tmp_path, outcome):
    """One pass over all of them, a truncated shard and some good samples; then a second."""
    train = tmp_path / "train"
    train.mkdir()
    write_tar(train / "train-000000.tar", HOSTILE)
    whole = Path(write_tar(train / "train-000001.tar", [usable()] * 4)).read_bytes()
    cut = whole.rindex(b"0003.")  # in the header of the last sample's second file
    (train / "train-000001.tar").write_bytes(whole[: cut + 300])
    draws = len(HOSTILE) + 3 + 1
    root = tmp_path / "run"
    many = ["--data.prompts", str(2 * draws), "--data.max_rejected", "1", "--model.iterations", "2"]
    fit(root, train, *many)
    expected = Counter(reason for reason in outcome.values() if reason)
    expected["shard: truncated"] = 1
    expected["prompt: too long"] = sum("characters" in x.name or "megabyte" in x.name for x in HOSTILE)
    logged = scalars(root)
    prefix = "samples/rejected/"
    counted = {tag.removeprefix(prefix): values for tag, values in logged.items() if tag.startswith(prefix)}
    assert counted == {reason: [count, 2 * count] for reason, count in expected.items()}
    share = expected.total() / draws
    assert logged["samples/rejected_share"] == pytest.approx([share, share])
    assert all(0 < seconds < 60 for seconds in logged["time/data_wait"])
    rows = list(map(json.loads, (root / "quarantine.jsonl").read_text().splitlines()))
    assert Counter(row["reason"] for row in rows) == expected  # each once, though seen twice
    assert all(row.keys() == {"id", "shard", "key", "reason", "message"} for row in rows)


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory) -> Path:
    """40 good samples and 4 with a truncated image."""
    folder = tmp_path_factory.mktemp("spoilt")
    bad = next(entry for entry in HOSTILE if entry.reasons == ("image: truncated",))
    write_tar(folder / "train-000000.tar", [usable()] * 40 + [bad] * 4)
    return folder


@pytest.mark.slow
def test_too_large_a_share_stops_in_one_line_and_a_higher_limit_goes_on(tmp_path, capsys, spoilt):
    """44 draws an iteration: only in the third are at least 100 seen."""
    options = ["--data.prompts", "88", "--model.iterations", "4"]
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path, spoilt, *options)
    [line] = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert "12 of 132 samples rejected (image: truncated 12)" in line and "data.max_rejected" in line
    assert len(list((tmp_path / "rollouts").iterdir())) == 2
    fit(tmp_path, spoilt, *options, "--data.max_rejected", "0.1", "--ckpt_path", "last")
    assert scalars(tmp_path)["samples/rejected/image: truncated"] == [4, 8, 12, 16]
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 4


def test_an_iteration_without_a_usable_sample_takes_no_step(tmp_path):
    """Eight samples, one of them usable, two an iteration."""
    bad = next(entry for entry in HOSTILE if entry.reasons == ("image: truncated",))
    train = tmp_path / "train"
    train.mkdir()
    write_tar(train / "train-000000.tar", [bad] * 7 + [usable()])
    ran = [
        "--data.prompts",
        "4",
        "--model.iterations",
        "4",
        "--data.max_rejected",
        "1",
        "--data.shuffle",
        "8",
    ]
    fit(tmp_path, train, *ran)
    rows = [len(gzip.decompress(path.read_bytes())) for path in sorted((tmp_path / "rollouts").iterdir())]
    assert len(rows) == 4 and sum(map(bool, rows)) == 1
    logged = scalars(tmp_path)
    assert len(logged["update/lr"]) == 4 and len(logged["update/grad_norm"]) == 1
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 1 and checkpoint["ivgr"]["iteration"] >= rows.index(max(rows)) + 1


def test_a_broken_held_out_image_is_left_out_of_the_figures_and_listed(tmp_path, spoilt):
    ran = ["--data.prompts", "4", "--model.iterations", "1", "--data.val_queries", "44"]
    fit(tmp_path, spoilt, *ran, "--data.val", str(spoilt))
    rows = list(map(json.loads, (tmp_path / "quarantine.jsonl").read_text().splitlines()))
    assert Counter(row["key"] for row in rows) == {key: 1 for key in ("0040", "0041", "0042", "0043")}
