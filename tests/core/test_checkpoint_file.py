"""Checkpoints: whatever is wrong with one is one line, and a run goes on with what it is told."""

import copy
import pickle
import random
import shutil
from collections import Counter

import pytest
import torch
from lightning import Trainer
from PIL import Image
from safetensors.torch import save_file

from ivgr.cli.main import main
from ivgr.core.checkpoint_file import read_checkpoint
from ivgr.core.errors import UserError
from ivgr.launch.error_lines import mendable_line
from ivgr.launch.lightning_cli import CLI, run_lightning
from ivgr.models.model_directory import write_directory
from ivgr.models.pretrained import TINY, Pretrained
from ivgr.toy.tiny_model import TinyScratch
from support.checkpoints import CONFIG, SMALL

WORDS = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy") / "small"
    write_directory(*TinyScratch(width=64, layers=2, vision_layers=1).load(), folder)
    return folder


def command(policy, root, *more):
    where = ["--model.policy", str(policy), "--trainer.default_root_dir", str(root)]
    return ["fit", "--config", str(CONFIG), *WORDS, *where, *more]


@pytest.fixture(scope="module")
def run(policy, tmp_path_factory):
    """The folder of a run of three iterations."""
    root = tmp_path_factory.mktemp("run")
    main(command(policy, root))
    return root


@pytest.fixture(scope="module")
def saved(run):
    return run / "checkpoints" / "last.ckpt"


class Held(CLI):
    """A run that is made and not started."""

    def _run_subcommand(self, subcommand):
        pass


@pytest.fixture(scope="module")
def resume(policy, run):
    """Goes on from a checkpoint in one process, up to an optimizer step without gradient in place of
    the first iteration; the module. More words of the command line make another run of it."""
    made = {}

    def steps(trainer, module):
        optimizer = module.optimizers(use_pl_optimizer=False)
        for parameter in module.policy.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        optimizer.step()

    def go(path, *words):
        if words not in made:
            more = ("--model.iterations", "5", *words)
            made[words] = run_lightning(command(policy, run, *more), Held)
        cli = made[words]
        module = cli.model
        if module.policy is not None:
            module.policy.load_state_dict(made["weights"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "_run_stage", lambda trainer: steps(trainer, module))
            cli.trainer.fit(module, datamodule=cli.datamodule, ckpt_path=str(path))
        return module

    made["weights"] = Pretrained(str(policy)).load()[0].state_dict()
    return go


def refused(call, *arguments):
    with pytest.raises(Exception) as raised:
        call(*arguments)
    error = mendable_line(raised.value)
    assert error is not None, raised.value
    assert "\n" not in str(error)
    return str(error)


def image(path):
    Image.new("RGB", (40, 30)).save(path, "PNG")


def safetensors(path):
    save_file({"a": torch.zeros(3)}, path)


def legacy(path):
    torch.save({"ivgr": {}}, path, _use_new_zipfile_serialization=False)


def another(path):
    torch.save({"state_dict": {}, "ivgr_": {}}, path)


def in_part(path, saved):
    data = saved.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def folder(path):
    path.mkdir()


def model_folder(path):
    shutil.copytree(TINY, path)


KINDS = {
    "image": (image, "no archive of torch.save"),
    "safetensors": (safetensors, "weights alone"),
    "legacy": (legacy, "no archive of torch.save"),
    "text": (lambda path: path.write_text("x: 1"), "no archive of torch.save"),
    "empty": (lambda path: path.write_bytes(b""), "no archive of torch.save"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({})), "no archive of torch.save"),
    "of something else": (another, "not made by `ivgr fit`"),
    "folder": (folder, "is a folder"),
    "model folder": (model_folder, "--model.policy"),
    "missing": (lambda path: None, "no checkpoint"),
    "truncated": (in_part, "truncated or damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_another_kind_is_one_line_in_every_command(name, saved, policy, run, tmp_path, capsys):
    make, said = KINDS[name]
    path = tmp_path / "a.ckpt"
    make(path, saved) if make is in_part else make(path)
    validate = ["validate", *command(policy, run)[1:]]
    for words in (
        ["archive", "show", str(path)],
        ["export", str(path), str(tmp_path / "out")],
        [*command(policy, run), "--ckpt_path", str(path)],
        [*validate, "--ckpt_path", str(path)],
    ):
        with pytest.raises(SystemExit) as stop:
            main(words)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1 and str(path) in error, words
        assert said in error, error


def test_any_flipped_bit_is_found_or_without_effect(saved, resume, tmp_path):
    """A bit that no part's checksum covers is one of the zip format itself: what is read is the same."""
    data, path = bytearray(saved.read_bytes()), tmp_path / "flipped.ckpt"
    whole, found = read_checkpoint(saved, whole=True), 0
    rng = random.Random(0)
    for _ in range(40):
        place = rng.randrange(len(data))
        data[place] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            same(read_checkpoint(path, whole=True), whole)
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            found += 1
        data[:] = saved.read_bytes()
    assert found > 30


def same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            same(one[name], other[name])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other or (one != one and other != other)


def branches(value, path=()):
    """Every place in a checkpoint; of many tensors of a kind the first two and the last."""
    yield path
    inner = list(value.items()) if isinstance(value, dict) else []
    if len(inner) > 12 and path[:1] in (("state_dict",), ("optimizer_states",)):
        inner = [*inner[:2], inner[-1]]
    if isinstance(value, list | tuple):
        inner = list(enumerate(value))[:3]
    for key, part in inner:
        yield from branches(part, (*path, key))


def altered(value, path, new):
    """A copy with another part at `path`; ... removes it."""
    if not path:
        return new
    copied = copy.copy(value) if isinstance(value, dict) else list(value)
    if len(path) == 1 and new is ...:
        del copied[path[0]]
    else:
        copied[path[0]] = altered(value[path[0]], path[1:], new)
    return copied


ODD = (..., None, True, "x", -1, 0.5, [], [[1]], {}, {"a": 1}, torch.zeros(2, 3))
# What nothing reads, or what may be missing or null: an old checkpoint has none of it.
FREE = {("loops", f"{name}_loop") for name in ("validate", "test", "predict")}


def cases(whole):
    paths = [path for path in branches(whole) if path and path[:2] not in FREE]
    return [(path, new) for path in paths for new in ODD]


def holds(module, whole):
    """Whether the run stands where the checkpoint says, with its weights."""
    assert module.iteration == whole["ivgr"]["iteration"]
    assert module.trainer.datamodule.start == module.iteration
    assert module.trainer.fit_loop.epoch_loop.batch_progress.total.processed == module.iteration
    assert len(module.optimizers(use_pl_optimizer=False).state) == len(whole["optimizer_states"][0]["state"])


def spoil_weights(state):
    next(iter(state["state_dict"].values())).view(-1)[3] = torch.nan


def spoil_moments(state):
    next(iter(state["optimizer_states"][0]["state"].values()))["exp_avg"].view(-1)[0] = torch.inf


SPOILT = {
    "its policy is NaN": (spoil_weights, "numbers of its policy are not finite"),
    "its moments are infinite": (spoil_moments, "numbers of its optimizer are not finite"),
    "its data's place is gone": (lambda state: state.pop("TinyWorld"), "does not say where TinyWorld stands"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_no_run_goes_on_from_what_is_spoilt(name, saved, resume, tmp_path):
    spoil, said = SPOILT[name]
    state = read_checkpoint(saved, whole=True)
    spoil(state)
    torch.save(state, tmp_path / "spoilt.ckpt")
    assert said in refused(resume, tmp_path / "spoilt.ckpt")


@pytest.mark.parametrize("count", [60, pytest.param(None, marks=pytest.mark.slow)])
def test_a_checkpoint_of_any_content_is_refused_or_goes_on(saved, resume, tmp_path, count):
    """Every part of it dropped or of another type."""
    whole, path, seen = read_checkpoint(saved, whole=True), tmp_path / "odd.ckpt", Counter()
    holds(resume(saved), whole)
    every = cases(whole)
    for place, new in every if count is None else random.Random(1).sample(every, count):
        torch.save(altered(whole, place, new), path)
        try:
            holds(resume(path), whole)
            seen["goes on"] += 1
        except Exception as error:
            mendable = mendable_line(error)
            assert mendable is not None and "\n" not in str(mendable), (place, new)
            seen["is refused"] += 1
    print(len(every), "places and types;", dict(seen))
    assert seen["is refused"] > 3 * seen["goes on"]
