"""`ivgr export`: stock transformers loads what it writes, with the policy's logits."""

import pickle

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from ivgr.cli.main import main
from ivgr.models.lora import AdapterConfig
from ivgr.models.pretrained import Pretrained
from ivgr.packing.prefix_tree import pack_queries
from support.checkpoints import fit_small, write_checkpoint
from support.families import FAMILIES, make_tree

LORA = ("--model.trainable.adapter.rank", "3", "--model.trainable.adapter.targets", "language+vision")


LATEST = FAMILIES[-1]  # the others in the slow tier


@pytest.fixture(
    scope="module",
    params=[name if name == LATEST else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def policy(request, tmp_path_factory):
    return write_checkpoint(request.param, tmp_path_factory.mktemp("policy") / request.param)


@pytest.fixture(autouse=True)
def advantages(monkeypatch):
    """Random weights earn no reward."""
    monkeypatch.setattr("ivgr.trainer.rl_step.group_advantages", lambda rewards: [1.0, -1.0])


def trained(policy, checkpoint, adapter=None):
    """The module's policy as its checkpoint has it."""
    model = Pretrained(str(policy)).load()[0].eval()
    if adapter:
        adapter.inject(model)
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("policy."): value for name, value in saved.items()})
    return model


@torch.no_grad()
def tree_logits(model):
    """In the layout of training."""
    (query,) = queries(model)
    (pack,) = pack_queries(model, [query], 1 << 40)
    pack.pixels = [part.to(model.dtype) for part in pack.pixels]
    return model.lm_head(pack.hidden(model))[0]


@torch.no_grad()
def stock_logits(model):
    """Of the same tokens, a plain row without a branch, by the model's own forward."""
    (query,) = queries(model)
    ids = torch.cat([query.prefix, query.groups[0].instruction, query.groups[0].rollouts[0].tokens])[None]
    kinds = (ids == model.config.image_token_id).int()
    vision = {"pixel_values": query.pixel_values.to(model.dtype), "image_grid_thw": query.image_grid_thw}
    return model(input_ids=ids, mm_token_type_ids=kinds, **vision).logits[0]


def queries(model):
    generator = torch.Generator().manual_seed(2)
    return [make_tree(model, generator, [(2, 2), (1, 3)], 1, [[6]])]


def export(capsys, *words):
    main(["export", *map(str, words)])
    return capsys.readouterr().out


def test_a_full_policy_comes_out_bit_for_bit_and_training_goes_on_from_it(policy, tmp_path, capsys):
    checkpoint, out = fit_small(policy, tmp_path / "run"), tmp_path / "out"
    assert "after 3 optimizer updates" in export(capsys, checkpoint, out)
    stock, own = AutoModelForImageTextToText.from_pretrained(out).eval(), trained(policy, checkpoint)
    assert torch.equal(stock_logits(stock), stock_logits(own))
    assert torch.equal(tree_logits(own), tree_logits(Pretrained(str(out)).load()[0]))
    torch.testing.assert_close(stock_logits(stock), tree_logits(own), atol=1e-4, rtol=0)
    before = AutoModelForImageTextToText.from_pretrained(policy).eval()
    assert (stock_logits(stock) - stock_logits(before)).abs().max() > 0.1
    processor_is_the_same(policy, out)
    assert fit_small(out, tmp_path / "on").exists()


def processor_is_the_same(policy, out):
    one, other = (AutoProcessor.from_pretrained(folder) for folder in (policy, out))
    chat = [{"role": "user", "content": [{"type": "text", "text": "What color is the red circle?"}]}]
    assert one.apply_chat_template(chat) == other.apply_chat_template(chat)
    assert type(one) is type(other) and one.image_processor.to_dict() == other.image_processor.to_dict()


def test_adapters_are_merged(policy, tmp_path, capsys):
    """In double precision, since fp32 logits are themselves good to 1e-5 only."""
    checkpoint, out = fit_small(policy, tmp_path / "run", *LORA), tmp_path / "out"
    export(capsys, checkpoint, out)
    stock = AutoModelForImageTextToText.from_pretrained(out).eval()
    assert not any("lora" in name for name, _ in stock.named_parameters())
    own = trained(policy, checkpoint, AdapterConfig(rank=3, targets="language+vision"))
    expected, found = stock_logits(own.double()), stock_logits(stock.double())
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()
    before = AutoModelForImageTextToText.from_pretrained(policy).eval()
    assert (found - stock_logits(before.double())).abs().max() > 0.1


class Bomb:
    """Explodes when it is unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


def refuses(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        export(capsys, *words)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("ivgr: error: ") and error.count("\n") == 1
    return error


def test_what_cannot_be_exported_is_one_clear_line(tmp_path, capsys):
    out, ckpt = tmp_path / "out", tmp_path / "a.ckpt"
    assert "no checkpoint is there" in refuses(capsys, ckpt, out)
    ckpt.write_bytes(pickle.dumps(Bomb()))
    assert "weights-only" in refuses(capsys, ckpt, out)
    torch.save({"state_dict": {}, "bomb": Bomb()}, ckpt)
    assert "weights-only" in refuses(capsys, ckpt, out)
    torch.save({"state_dict": {}}, ckpt)
    assert "not made by" in refuses(capsys, ckpt, out)
    made = {"path": None, "dtype": "float32", "adapter": None}
    common = {"pytorch-lightning_version": "2.6.6", "epoch": 0, "global_step": 1}
    torch.save(common | {"state_dict": {}, "ivgr": {"policy": made, "iteration": 1}}, ckpt)
    assert "--policy" in refuses(capsys, ckpt, out)
    assert "does not fit tiny" in refuses(capsys, ckpt, out, "--policy", "tiny")
    assert not out.exists()
    assert "is there already" in refuses(capsys, ckpt, tmp_path)
