"""What each kind of logger gets from the writer."""

import csv

import lightning as L
import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ivgr.callbacks.writer import Writer, writer_of
from ivgr.plotting.tags import Name, describe

PICTURE = np.zeros((8, 640, 3), np.uint8)


class Notes(Logger):
    """A logger that keeps what it is given; with pictures it takes them as WandbLogger does."""

    name, version = "notes", 0

    def __init__(self):
        super().__init__()
        self.metrics, self.saved = [], 0

    def log_metrics(self, metrics, step=None):
        self.metrics.append((step, metrics))

    def log_hyperparams(self, params, *args, **kwargs):
        raise AssertionError("the writer logs no settings")

    def save(self):
        self.saved += 1


class Album(Notes):
    def __init__(self):
        super().__init__()
        self.pictures, self.texts = [], []

    def log_image(self, key, images, step=None, **kwargs):
        self.pictures.append((key, [image.shape for image in images], step, kwargs))

    def log_text(self, key, columns=None, data=None, step=None):
        self.texts.append((key, columns, data, step))


def write_all(writer):
    writer.scalar("reward/total", 1.5, 3, "grounded")
    writer.scalars({Name("reward/total", "textual"): 0.5, Name("update/lr"): 0.1}, 3)
    writer.text("rollout/completions", "**said**", 3)
    writer.picture("rollout/boxes/1", PICTURE, 3, "grounded", caption="what is seen")
    writer.flush()


def scalars(folder):
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_gets_a_sub_run_for_each_stream_under_common_tags(tmp_path):
    write_all(Writer([TensorBoardLogger(tmp_path, name="", version="")]))
    assert scalars(tmp_path / "grounded") == {"reward/total": [(3, 1.5)]}
    assert scalars(tmp_path / "textual") == {"reward/total": [(3, 0.5)]}
    assert scalars(tmp_path) == {"update/lr": [(3, pytest.approx(0.1))]}
    (image,) = EventAccumulator(str(tmp_path / "grounded")).Reload().Images("rollout/boxes/1")
    assert (image.step, image.height, image.width) == (3, 8, 640)
    (text,) = EventAccumulator(str(tmp_path)).Reload().Tensors("rollout/completions")
    assert text.tensor_proto.string_val[0] == b"**said**"


def test_every_tag_that_tensorboard_gets_is_described_once_per_run(tmp_path):
    writer = Writer([TensorBoardLogger(tmp_path, name="", version="")])
    write_all(writer)
    write_all(writer)
    for folder, tags in (("", ["update/lr", "rollout/completions"]), ("grounded", ["rollout/boxes/1"])):
        events = EventAccumulator(str(tmp_path / folder)).Reload()
        for tag in tags:
            assert events.SummaryMetadata(tag).summary_description == describe(tag)
    assert scalars(tmp_path)["update/lr"] == [(3, pytest.approx(0.1))] * 2


def test_a_writer_that_was_closed_goes_on_in_new_files(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    writer = Writer([logger])
    write_all(writer)
    writer.close()
    logger.finalize("success")
    writer.scalar("reward/total", 2.5, 4, "grounded")
    writer.scalar("update/lr", 0.25, 4)
    writer.flush()
    assert sorted(scalars(tmp_path / "grounded")["reward/total"]) == [(3, 1.5), (4, 2.5)]
    assert sorted(step for step, _ in scalars(tmp_path)["update/lr"]) == [3, 4]


def test_a_csv_logger_beside_tensorboard_gets_the_scalars(tmp_path):
    """It has neither pictures nor texts, and is spared them."""
    table = CSVLogger(tmp_path, name="csv", version="")
    write_all(Writer([TensorBoardLogger(tmp_path / "board", name="", version=""), table]))
    with (tmp_path / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["step"] for row in rows} == {"3"}
    found = {name: row[name] for row in rows for name in row if row[name] and name != "step"}
    assert found == {"grounded/reward/total": "1.5", "textual/reward/total": "0.5", "update/lr": "0.1"}
    assert scalars(tmp_path / "board" / "grounded") == {"reward/total": [(3, 1.5)]}


def test_a_logger_without_pictures_is_spared_them():
    notes = Notes()
    write_all(Writer([notes]))
    assert notes.metrics == [
        (3, {"grounded/reward/total": 1.5}),
        (3, {"textual/reward/total": 0.5, "update/lr": 0.1}),
    ]
    assert notes.saved == 1


def test_a_logger_with_pictures_gets_them_with_their_caption():
    album = Album()
    write_all(Writer([album]))
    picture = ("grounded/rollout/boxes/1", [(8, 640, 3)], 3, {"caption": ["what is seen"]})
    assert album.pictures == [picture]
    assert album.texts == [("rollout/completions", ["text"], [["**said**"]], 3)]


def test_a_trainer_has_one_writer_and_only_the_first_rank_writes(tmp_path, monkeypatch):
    notes = Notes()
    trainer = L.Trainer(logger=notes, accelerator="cpu", default_root_dir=tmp_path)
    assert writer_of(trainer) is writer_of(trainer)
    write_all(writer_of(trainer))
    assert len(notes.metrics) == 2
    other = L.Trainer(logger=notes, accelerator="cpu", default_root_dir=tmp_path)
    monkeypatch.setattr(type(other), "is_global_zero", False)
    write_all(writer_of(other))
    assert len(notes.metrics) == 2
