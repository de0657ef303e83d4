"""Demonstrations from shards: every text, at the shards' own ratio, in an order of the seed alone."""

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText

from ivgr.cli.main import main
from ivgr.core.frame import RELATIVE, Frame
from ivgr.data.sft_datamodule import ColdStart, DemonstrationStream
from ivgr.data.sft_encode import move_boxes
from ivgr.data.shards import read_heads, write_shards
from ivgr.data.tar import Slice
from ivgr.models.pretrained import TINY
from ivgr.toy.world import World, draw_samples
from support.samples import make_sample

CONFIG = Path(__file__).parents[2] / "configs" / "distill_sft.yaml"
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    samples = [make_sample(f"g{i}", reasoning={"grounded": f"g{i}"}) for i in range(16)]
    samples += [make_sample(f"t{i}", reasoning={"textual": f"t{i}"}) for i in range(3)]
    samples += [make_sample("both", reasoning={"grounded": "b", "textual": "c"}), make_sample("none")]
    samples += [make_sample("single", kind="single", boxes=(), reasoning={"textual": "s"})]
    return [str(path) for path in write_shards(folder, "train", samples, 5)]


def names(batch):
    return [(demonstration.sample.id, demonstration.stream) for demonstration in batch]


def steps(shards, **options):
    settings = {"batch": 4, "steps": 11, "seed": 3, "shuffle": 6, **options}
    return [names(batch) for batch in DemonstrationStream(shards, **settings)]


def test_an_epoch_holds_every_text_once_in_its_stream(shards):
    batches = steps(shards, batch=11, steps=4)
    epochs = [Counter(batches[0] + batches[1]), Counter(batches[2] + batches[3])]
    streams = {"g": "grounded", "t": "textual"}
    wanted = [(f"{kind}{i}", streams[kind]) for kind, n in (("g", 16), ("t", 3)) for i in range(n)]
    wanted += [("both", "grounded"), ("both", "textual"), ("single", "single")]
    assert epochs == [Counter(wanted)] * 2
    assert batches[:2] != batches[2:]


def test_the_order_depends_on_the_seed(shards):
    assert steps(shards) == steps(shards) != steps(shards, seed=4)


def test_ranks_share_each_batch(shards):
    ranks = [steps(shards, rank=rank, ranks=2) for rank in (0, 1)]
    for whole, *parts in zip(steps(shards), *ranks, strict=True):
        assert [len(part) for part in parts] == [2, 2] and sorted(parts[0] + parts[1]) == sorted(whole)


@pytest.mark.parametrize("start", [0, 1, 7, 11])
def test_a_resumed_run_sees_what_the_unbroken_one_would(shards, start):
    assert steps(shards, start=start) == steps(shards)[start:]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_do_not_change_the_order(shards, workers):
    stream = DemonstrationStream(shards, 4, 11, 3, 6, start=2)
    loader = DataLoader(
        stream, batch_size=None, num_workers=workers, multiprocessing_context="fork", collate_fn=names
    )
    assert list(islice(loader, 20)) == steps(shards)[2:]


def test_boxes_of_demonstrations_move_into_the_models_frame():
    text = "the bag <box>[100,200,500,1000]</box> is red <box>[0,0,10,10]</box>"
    moved = move_boxes(text, RELATIVE, Frame(280, 140))
    assert moved == "the bag <box>[28,28,140,140]</box> is red <box>[0,0,3,1]</box>"
    assert move_boxes("<box>[28,28,140,140]</box>", Frame(280, 140), RELATIVE) == (
        "<box>[100,200,500,1000]</box>"
    )
    assert move_boxes(text, RELATIVE, RELATIVE) is text


def test_steps_by_epochs(tmp_path):
    """Ten demonstrations, four a step: two passes are five steps."""
    samples = [replace(s, reasoning={"textual": "so"}) for s in draw_samples(World("train", 10, seed=4))]
    folder = write_shards(tmp_path / "train", "train", samples, 5)[0].parent
    data = ColdStart(str(folder), str(folder), epochs=2, batch=4)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1)
    data._check_train()
    assert data.total_steps == 5


def test_a_cold_start_with_adapters_leaves_a_plain_model(tmp_path):
    samples = list(draw_samples(World("train", 30, seed=4)))
    folder = str(write_shards(tmp_path / "train", "train", samples, 10)[0].parent)
    main([
        "fit", "--config", str(CONFIG), "--trainer.default_root_dir", str(tmp_path / "run"),
        "--data.train", folder, "--data.val", folder, "--data.val_queries", "2", "--data.steps", "2",
        "--data.batch", "4", "--model.trainable.adapter.rank", "4",
        "--model.trainable.gradient_checkpointing", "true",
        "--model.engine.sampling.max_new_tokens", "4", "--model.policy", str(TINY),
    ])  # fmt: skip
    plain, trained = (
        dict(AutoModelForImageTextToText.from_pretrained(path).named_parameters())
        for path in (TINY, tmp_path / "run" / "model")
    )
    assert plain.keys() == trained.keys()
    changed = {name for name in plain if not torch.equal(plain[name], trained[name])}
    assert changed and all("language_model.layers" in name and "proj" in name for name in changed)


def test_images_are_read_of_this_ranks_share_alone(shards, monkeypatch):
    reads, read = [], Slice.read
    monkeypatch.setattr(Slice, "read", lambda slice_: reads.append(slice_) or read(slice_))
    stream = DemonstrationStream(shards, 4, 11, 3, 6, rank=1, ranks=2, start=5)
    batches = list(stream)
    assert len(reads) == sum(map(len, batches)) == 6 * 2
    assert all(demonstration.sample.images[0] for batch in batches for demonstration in batch)


@pytest.mark.parametrize("rank", [0, 1])
def test_texts_are_counted_by_all_ranks_together_and_no_image_is_read(shards, monkeypatch, rank):
    monkeypatch.setattr(Slice, "read", lambda _: pytest.fail("an image was read"))
    opened = []

    def heads(part):
        opened.append(part)
        return read_heads(part)

    monkeypatch.setattr("ivgr.data.sft_datamodule.read_heads", heads)
    monkeypatch.setattr("ivgr.data.sft_datamodule.gather_lists", lambda found: found)
    data = ColdStart("", "")
    data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
    found = data._count(shards)
    assert opened == [shards[rank::2]]
    assert found == sum(len(item.sample.reasoning) for item in read_heads(shards[rank::2]))
