"""Split weights are read from their files rank by rank: the right numbers, never a whole model on a rank, and
one line on all ranks where a file is at fault."""

import json
import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from ivgr.core.errors import UserError
from ivgr.models.lora import AdapterConfig
from ivgr.models.model_directory import write_directory
from ivgr.models.pretrained import Pretrained
from ivgr.models.trainable import TrainableConfig
from ivgr.tools.bench.measure import LiveBytes
from ivgr.toy import RuleJudge
from ivgr.toy.tiny_model import TinyScratch
from ivgr.trainer.fsdp_strategy import FSDP2
from ivgr.trainer.reference import FrozenReference
from ivgr.trainer.rl_module import IVGR
from support.ranks import on_ranks

pytestmark = pytest.mark.multiprocess
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with weights whose rows three ranks cannot share evenly."""
    folder = tmp_path_factory.mktemp("policy") / "model"
    write_directory(*TinyScratch(width=64, layers=2, vision_layers=1).load(), folder)
    return folder


@pytest.fixture(scope="module")
def other(folder, tmp_path_factory):
    """The same model with other numbers."""
    other = shutil.copytree(folder, tmp_path_factory.mktemp("reference") / "model")
    save_file({name: weight + 1.0 for name, weight in load_file(folder / WEIGHTS).items()}, other / WEIGHTS)
    return other


def configure(mesh, source, reference=None, **form):
    """An `IVGR` as Lightning has it configure its model, under FSDP2."""
    strategy = FSDP2()
    strategy._device_mesh, strategy.parallel_devices = mesh, [torch.device("cpu")]
    strategy.cluster_environment = SimpleNamespace(local_rank=lambda: 0)
    module = IVGR(source, TrainableConfig(**form), reference=FrozenReference(reference), judge=RuleJudge())
    module._trainer = SimpleNamespace(strategy=strategy, precision="32-true")
    module.configure_model()
    return module


def stored_in(folder):
    """The weights of a directory by today's names, read by safetensors alone."""
    names = (("visual.", "model.visual."), ("model.", "model.language_model."))
    return {
        next((new + name.removeprefix(old) for old, new in names if name.startswith(old)), name): weight
        for name, weight in load_file(folder / WEIGHTS).items()
    }


def assert_holds(model, folder):
    """The gathered weights of `model` are those of the file, bit by bit."""
    expected = stored_in(folder)
    found = {name.replace(".base_layer.", "."): weight for name, weight in model.named_parameters()}
    for name, weight in found.items():
        assert isinstance(weight, DTensor) and not weight.is_meta, name
        if ".lora_" not in name:
            assert torch.equal(weight.full_tensor(), expected.pop(name)), name
    assert not expected


def reads_its_shard(folder, other, mesh):
    module = configure(mesh, str(folder))
    assert_holds(module.policy, folder)
    assert_holds(module.reference.model, folder)
    assert not any(weight.requires_grad for weight in module.reference.model.parameters())
    assert all(weight.requires_grad for weight in module.policy.parameters())
    whole, _ = Pretrained(str(folder)).load()
    replica = module.rollout_policy()
    for kind in ("named_parameters", "named_buffers"):
        for (name, tensor), own in zip(
            getattr(replica, kind)(), dict(getattr(whole, kind)()).values(), strict=True
        ):
            assert torch.equal(tensor, own), name
    for model in (module.policy, module.reference.model):
        for (name, buffer), own in zip(model.named_buffers(), whole.buffers(), strict=True):
            assert torch.equal(buffer, own), name
    head = module.policy.lm_head.weight
    assert head is module.policy.get_input_embeddings().weight and (
        mesh.size() == 2 or len(head) % mesh.size()
    )
    module = configure(mesh, str(folder), str(other), freeze=("vision",))
    assert_holds(module.policy, folder)
    assert_holds(module.reference.model, other)
    assert not any(weight.requires_grad for weight in module.policy.model.visual.parameters())


@pytest.mark.parametrize("ranks", [2, 3])
def test_gathered_weights_are_those_of_the_file(folder, other, tmp_path, ranks):
    on_ranks(partial(reads_its_shard, folder, other), tmp_path, ranks)


def reads_beside_adapters(folder, mesh):
    module = configure(mesh, str(folder), adapter=AdapterConfig(rank=4))
    assert_holds(module.policy, folder)
    whole, _ = Pretrained(str(folder)).load()
    AdapterConfig(rank=4).inject(whole)
    for (name, weight), own in zip(module.policy.named_parameters(), whole.parameters(), strict=True):
        assert weight.requires_grad == own.requires_grad and torch.equal(weight.full_tensor(), own), name


def test_adapters_are_those_of_one_process(folder, tmp_path):
    on_ranks(partial(reads_beside_adapters, folder), tmp_path)


def takes_its_share(folder, mesh):
    """Policy and reference are all that a rank holds, once each, and of each its part."""
    whole = sum(weight.nbytes for weight in load_file(folder / WEIGHTS).values())
    with LiveBytes() as live:
        module = configure(mesh, str(folder))
    held = [
        weight.to_local().nbytes
        for model in (module.policy, module.reference.model)
        for weight in model.parameters()
    ]
    assert 2 * whole / mesh.size() <= sum(held) < 1.02 * 2 * whole / mesh.size()
    assert sum(held) <= live.peak < 1.2 * sum(held)


def test_a_rank_holds_its_share_and_never_a_whole_model(tmp_path):
    write_directory(*TinyScratch(width=256, layers=6).load(), tmp_path / "model")
    on_ranks(partial(takes_its_share, tmp_path / "model"), tmp_path)


def gather_refusals(mesh, source, reference=None):
    with pytest.raises(UserError) as refused:
        configure(mesh, source, reference)
    said = [None] * mesh.size()
    dist.all_gather_object(said, str(refused.value))
    assert len(set(said)) == 1 and "\n" not in said[0]
    return said[0]


def is_refused_alike(folder, broken, mesh):
    """Also what only one rank meets: its machine's copy lacks a weight, or its rows hold the NaN."""
    mine = [folder, broken / "lacks"][mesh.get_local_rank()]
    lacks = "lacks 1 weights (first model.language_model.layers.1.mlp.down_proj.weight)"
    for source in (broken / "lacks", mine):
        assert lacks in gather_refusals(mesh, str(source))
    assert gather_refusals(mesh, str(folder), str(broken / "lacks")).startswith("model.reference.path")
    assert "not finite (first in model.language_model.layers.1" in gather_refusals(mesh, str(broken / "nan"))
    assert_holds(configure(mesh, str(folder)).policy, folder)


def test_a_fault_is_one_line_on_all_ranks_and_none_waits(folder, tmp_path):
    name = "model.layers.1.mlp.down_proj.weight"
    for fault in ("lacks", "nan"):
        path = shutil.copytree(folder, tmp_path / fault) / WEIGHTS
        weights = load_file(path)
        if fault == "lacks":
            del weights[name]
        else:
            weights[name][-1, -1] = torch.nan
        save_file(weights, path, metadata={"format": "pt"})
    on_ranks(partial(is_refused_alike, folder, tmp_path), tmp_path)


def test_the_index_says_which_files_are_read(folder, tmp_path):
    """A folder may hold others, such as one that was left there."""
    model, processor = Pretrained(str(folder)).load()
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    processor.save_pretrained(tmp_path)
    files = set(json.loads((tmp_path / f"{WEIGHTS}.index.json").read_text())["weight_map"].values())
    assert len(files) > 3
    save_file({"lm_head.bias": torch.zeros(2)}, tmp_path / "model-left.safetensors")
    split, _, weights = Pretrained(str(tmp_path)).load_skeleton()
    weights.fill(split, torch.device("cpu"))
    assert all(map(torch.equal, split.parameters(), model.parameters()))
