"""Each use of what Lightning does not document, against what it is used for; and no other use."""

import ast
import re
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader

import ivgr
from ivgr.core import lightning_private as private

ROOT = Path(ivgr.__file__).parent


class Model(L.LightningModule):
    """Four batches, one weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.validated = []

    def training_step(self, batch, _):
        return (self.weight - batch.float()).square().sum()

    def validation_step(self, batch, _):
        self.validated.append(private.finished_iterations(self.trainer))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self):
        return DataLoader([1] * 4)

    def val_dataloader(self):
        return DataLoader(range(1))


class Watcher(L.Callback):
    """Calls `look` at the end of every iteration."""

    def __init__(self, look):
        self.look = look

    def on_train_batch_end(self, trainer, module, *_):
        self.look(trainer)


def trainer_of(tmp_path, *callbacks, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(
        accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, num_sanity_val_steps=0,
        enable_checkpointing=False, callbacks=list(callbacks), **quiet, **settings,
    )  # fmt: skip


def fit(tmp_path, look, ckpt_path=None, **settings):
    model, trainer = Model(), trainer_of(tmp_path, Watcher(look), **settings)
    trainer.fit(model, ckpt_path=ckpt_path, weights_only=False)
    return model, trainer


def test_finished_iterations_count_the_one_that_ends_and_the_last_is_known(tmp_path):
    seen = []
    _, trainer = fit(
        tmp_path, lambda t: seen.append((private.finished_iterations(t), private.is_last_iteration(t)))
    )
    assert seen == [(1, False), (2, False), (3, False), (4, True)]
    assert private.saved_iterations(trainer.fit_loop.state_dict()) == 4


def test_a_validation_that_follows_is_known_before_it(tmp_path):
    seen = []
    model, _ = fit(tmp_path, lambda t: seen.append(private.validation_follows(t)), val_check_interval=2)
    assert seen == [False, True, False, True] and model.validated == [2, 4]


class Stop(Exception):
    pass


def interrupted(tmp_path, path):
    """A checkpoint of the second iteration's end, before its validation."""

    def look(trainer):
        if private.finished_iterations(trainer) == 2:
            torch.save(private.dump_checkpoint(trainer), path)
            raise Stop

    with pytest.raises(Stop):
        fit(tmp_path, look, val_check_interval=2)


def test_a_dumped_checkpoint_is_one_that_lightning_goes_on_from(tmp_path):
    interrupted(tmp_path, tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert {"state_dict", "optimizer_states", "loops", "callbacks"} <= state.keys()
    seen = []
    whole, _ = fit(tmp_path, lambda t: None)
    model, _ = fit(
        tmp_path, lambda t: seen.append(private.finished_iterations(t)), ckpt_path=str(tmp_path / "a.ckpt")
    )
    assert seen == [3, 4] and torch.equal(model.weight, whole.weight)


def test_a_validation_that_was_broken_off_is_caught_up_with(tmp_path):
    interrupted(tmp_path, tmp_path / "a.ckpt")

    class CatchUp(L.Callback):
        def on_train_start(self, trainer, module):
            private.validate_now(trainer)
            assert trainer.training

    seen = []
    model, trainer = Model(), trainer_of(
        tmp_path, CatchUp(), Watcher(lambda t: seen.append(private.finished_iterations(t))),
        val_check_interval=2,
    )  # fmt: skip
    trainer.fit(model, ckpt_path=str(tmp_path / "a.ckpt"), weights_only=False)
    assert model.validated == [2, 4] and seen == [3, 4]


def test_an_iteration_that_is_given_up_is_not_counted(tmp_path):
    class GivesUp(Model):
        def training_step(self, batch, index):
            if index == 2:
                raise Stop
            return super().training_step(batch, index)

    trainer = trainer_of(tmp_path)
    with pytest.raises(Stop):
        trainer.fit(GivesUp())
    progress = trainer.fit_loop.state_dict()["epoch_loop.batch_progress"]["total"]
    assert progress["ready"] == 3 and progress["completed"] == 2
    private.forget_begun_iteration(trainer)
    progress = trainer.fit_loop.state_dict()["epoch_loop.batch_progress"]["total"]
    assert progress["ready"] == progress["started"] == progress["processed"] == progress["completed"] == 2


def test_the_cluster_is_that_which_started_the_processes(tmp_path, monkeypatch):
    assert isinstance(private.cluster_environment(trainer_of(tmp_path)), LightningEnvironment)
    trainer = trainer_of(tmp_path, plugins=[SLURMEnvironment(auto_requeue=False)])
    assert isinstance(private.cluster_environment(trainer), SLURMEnvironment)


def test_data_is_spread_over_all_ranks():
    strategy = ModelParallelStrategy()
    strategy.parallel_devices = [torch.device("cpu")] * 3
    strategy.num_nodes = 2
    private.spread_data_over_all_ranks(strategy)
    assert strategy._data_parallel_size == 6


def test_a_key_tells_callbacks_of_a_class_apart_by_their_settings():
    assert private.key_with_settings(Watcher(None), rows=3) == "Watcher{'rows': 3}"


def test_whether_a_module_has_a_trainer(tmp_path):
    model, trainer = Model(), trainer_of(tmp_path)
    assert not private.has_trainer(model)
    trainer.fit(model)
    assert private.has_trainer(model)


@pytest.mark.parametrize(
    ("mixin", "method"),
    [
        (private.IgnoresCheckpointSettings, "_parse_ckpt_path"),
        (private.RunsNothing, "_run_subcommand"),
    ],
)
def test_what_a_command_line_leaves_out_is_something_that_lightning_does(mixin, method):
    assert hasattr(LightningCLI, method)

    class Quiet(mixin, LightningCLI):
        pass

    assert getattr(Quiet, method) is getattr(mixin, method)


PRIVATE = (
    "epoch_loop", "batch_progress", "val_loop", "reset_restart_stage", "reset_on_restart",
    "_checkpoint_connector", "_accelerator_connector", "_data_connector", "_logger_connector",
    "_data_parallel_size", "_generate_state_key", "_data_fetcher", "_should_check_val_fx",
    "_parse_ckpt_path", "_run_subcommand", "_trainer",
)  # fmt: skip
TORCH = ("_parameters", "_buffers")  # of nn.Module
# What holds something of Lightning, by the names it goes by here.
HOLDERS = (
    "trainer",
    "module",
    "strategy",
    "callback",
    "logger",
    "experiment",
    "loop",
    "fit_loop",
    "progress",
)


def sources() -> list[Path]:
    return [path for path in ROOT.rglob("*.py") if path.name != "lightning_private.py"]


def test_nothing_else_uses_what_lightning_does_not_document():
    names = re.compile(rf"(?<!\w)({'|'.join(PRIVATE)})(?!\w)")
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and names.fullmatch(node.attr):
                found.append(f"{path}:{node.lineno}: {node.attr}")
            elif isinstance(node, ast.FunctionDef) and names.fullmatch(node.name):
                found.append(f"{path}:{node.lineno}: {node.name}")
            elif isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
                holder = node.value
                name = getattr(holder, "attr", getattr(holder, "id", None))
                if name in HOLDERS and node.attr not in TORCH:
                    found.append(f"{path}:{node.lineno}: {name}.{node.attr}")
    assert found == []
