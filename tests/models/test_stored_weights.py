"""Weights read straight from a directory's files are those that transformers itself loads."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText
from transformers.core_model_loading import Transpose, WeightConverter

from ivgr.models import stored_weights
from ivgr.models.lora import AdapterConfig
from ivgr.models.model_directory import read_config
from ivgr.models.pretrained import Pretrained, load_skeleton
from ivgr.models.skeleton import is_skeleton
from ivgr.models.stored_weights import read_skeleton
from support.families import FAMILIES, tiny_family

WEIGHTS = "model.safetensors"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"  # as the files name them
CPU = torch.device("cpu")


def write(family, folder, size="1GB", dtype=torch.float32, **text):
    model = tiny_family(family, **text).to(dtype)
    model.save_pretrained(folder, max_shard_size=size)
    return folder


def read(folder, dtype=torch.float32):
    model, weights = read_skeleton(folder, read_config(folder, "s"), dtype, "sdpa", "s")
    assert is_skeleton(model) and not any(buffer.is_meta for buffer in model.buffers())
    weights.fill(model, CPU)
    return model


def same(found, expected):
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = (dict(getattr(model, kind)()) for model in (found, expected))
        assert list(ours) == list(theirs)
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name
    assert (found.lm_head.weight is found.get_input_embeddings().weight) == (
        expected.lm_head.weight is expected.get_input_embeddings().weight
    )
    assert found.training == expected.training
    assert found.config.to_dict() == expected.config.to_dict()
    assert found.generation_config.to_dict() == expected.generation_config.to_dict()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("stored", "wanted"), [("float32", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16")]
)
def test_every_family_is_what_transformers_loads(family, stored, wanted, tmp_path, monkeypatch):
    """From several files, in the dtype that is asked for, in blocks of a few rows."""
    monkeypatch.setattr(stored_weights, "BLOCK", 1 << 10)
    folder = write(family, tmp_path, "50KB", getattr(torch, stored))
    assert len(list(folder.glob("*.safetensors"))) > 2
    dtype = getattr(torch, wanted)
    same(read(folder, dtype), AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype))


@pytest.mark.parametrize("name", ["new", "old"])
def test_a_model_is_saved_under_the_names_it_had(name, tmp_path):
    folder = write("qwen2_vl", tmp_path / "model")
    if name == "new":
        weights = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
        save_file({name: weight.clone() for name, weight in weights.items()}, folder / WEIGHTS)
    for model, out in (
        (read(folder), "ours"),
        (AutoModelForImageTextToText.from_pretrained(folder), "theirs"),
    ):
        model.save_pretrained(tmp_path / out)
    ours, theirs = (load_file(tmp_path / out / WEIGHTS) for out in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert ("model.language_model.norm.weight" in ours) == (name == "new")


@pytest.mark.parametrize("stored", ["once", "head alone", "both", "both apart"])
def test_tied_weights(stored, tmp_path):
    folder = write("qwen2_vl", tmp_path, tie_word_embeddings=True)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    weights = load_file(folder / WEIGHTS)
    embedding = weights[EMBEDDING]
    weights.pop(HEAD, None)
    if stored != "once":
        weights[HEAD] = embedding + 1.0 if stored == "both apart" else embedding.clone()
    if stored == "head alone":
        del weights[EMBEDDING]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    model, expected = read(folder), AutoModelForImageTextToText.from_pretrained(folder)
    same(model, expected)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == (stored != "both apart")
    assert torch.equal(model.get_input_embeddings().weight, embedding)


@pytest.mark.parametrize("targets", ["language", "language+vision"])
def test_adapters_start_from_the_numbers_they_start_from_on_a_whole_model(targets):
    form = AdapterConfig(rank=4, targets=targets)
    whole, _ = Pretrained("tiny", "bfloat16").load()
    model, _, weights = Pretrained("tiny", "bfloat16").load_skeleton()
    for each in (whole, model):
        form.inject(each)
    weights.fill(model, CPU)
    pairs = list(zip(model.named_parameters(), whole.named_parameters(), strict=True))
    for (name, weight), (own, expected) in pairs:
        assert name == own and weight.dtype == expected.dtype and torch.equal(weight, expected), name
        assert weight.requires_grad == expected.requires_grad == ("lora_" in name)
    assert sum(weight.any().item() for (name, weight), _ in pairs if "lora_A" in name) > 10


def test_a_copy_of_a_skeleton_is_filled_from_the_same_files():
    """The reference is one."""
    model, _, weights = Pretrained("tiny").load_skeleton()
    other = copy.deepcopy(model)
    for each in (model, other):
        weights.fill(each, CPU)
    same(other, model)
    assert not {weight.data_ptr() for weight in other.parameters()} & {
        w.data_ptr() for w in model.parameters()
    }


class Scaled(Pretrained):
    def load(self):
        model, processor = super().load()
        with torch.no_grad():
            model.lm_head.weight.mul_(2.0)
        return model, processor


def test_a_class_of_the_users_own_loads_its_model_itself():
    model, _, weights = load_skeleton(Scaled("tiny"))
    assert weights is None and not is_skeleton(model)
    assert torch.equal(model.lm_head.weight, 2.0 * Pretrained("tiny").load()[0].lm_head.weight)


def test_weights_that_transformers_computes_are_read_by_it(tmp_path, monkeypatch):
    """A family of the user's own may store experts one by one."""
    folder = write("qwen2_vl", tmp_path)
    converter = WeightConverter("o_proj.weight", "o_proj.weight", operations=[Transpose(0, 1)])
    monkeypatch.setattr(stored_weights, "get_model_conversion_mapping", lambda _: [converter])
    model, weights = read_skeleton(folder, read_config(folder, "s"), torch.float32, "sdpa", "s")
    assert weights is None
    same(model, AutoModelForImageTextToText.from_pretrained(folder))
