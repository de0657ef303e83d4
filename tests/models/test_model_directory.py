"""Model directories: what is wrong with one is a line that names it, and what is written is whole."""

import json
import random
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from ivgr.cli.main import main
from ivgr.core.errors import UserError
from ivgr.core.prompts import Prompts
from ivgr.core.rejection import RejectedSample
from ivgr.data.encode import QueryEncoder
from ivgr.data.sft_encode import Demonstration, encode_demonstration
from ivgr.models.forward import end_of_turn, stop_ids
from ivgr.models.model_directory import refuse_to_replace, write_directory
from ivgr.models.pretrained import Pretrained
from ivgr.rollout.sampling import SamplingConfig
from ivgr.rollout.transformers_engine import TransformersEngine
from ivgr.toy.tiny_model import TinyScratch
from ivgr.trainer.reference import FrozenReference
from support.samples import make_sample

WEIGHTS = "model.safetensors"
PLAIN = ("config.json", "generation_config.json", "processor_config.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sound directory, smaller than the shipped one."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    write_directory(*TinyScratch(width=64, layers=2, vision_layers=1).load(), folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def change(folder, name, **fields):
    path = folder / name
    kept = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in kept.items() if value is not ...}))


def rewrite(folder, change):
    weights = load_file(folder / WEIGHTS)
    save_file(change(weights), folder / WEIGHTS, metadata={"format": "pt"})


def rename(weights):
    return {f"base_model.model.{name}": weight for name, weight in weights.items()}


def without(part, weights):
    return {name: weight for name, weight in weights.items() if part not in name}


def spoil(value, weights):
    name = next(name for name in weights if "layers.1.mlp.down" in name)
    weights[name][0, 0] = value
    return weights


def reshape(weights):
    name = next(name for name in weights if "layers.0.mlp.up" in name)
    return weights | {name: weights[name][:-1].clone()}


def to_int8(weights):
    name = next(name for name in weights if "layers.0.mlp.up" in name)
    return weights | {name: weights[name].to(torch.int8)}


def halve(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def write(name, text, folder):
    (folder / name).write_text(text)


def remove(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def pickle_weights(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def add_code(folder):
    write("own.py", "raise SystemExit('executed')", folder)
    classes = {"AutoConfig": "own.C", "AutoModelForImageTextToText": "own.M"}
    change(folder, "config.json", model_type="own", auto_map=classes)


def quantise(method, folder):
    fields = {"quant_method": method, "bits": 4, "load_in_4bit": True, "group_size": 128}
    change(folder, "config.json", quantization_config=fields)


def weights(change):
    return lambda folder: rewrite(folder, change)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
BLIND = "{{ messages[0]['content'][-1]['text'] }}"
EXTRA = {"model.layers.7.mlp.up_proj.weight": torch.zeros(2, 2)}
BROKEN = {
    "lacks the tower": (weights(partial(without, "visual")), "lacks 19 weights", "visual"),
    "all renamed": (weights(rename), "lacks", "base_model.model"),
    "a layer more": (weights(lambda w: w | EXTRA), "layers.7.mlp.up_proj", "no place for"),
    "another shape": (weights(reshape), "layers.0.mlp.up", "[191, 64]"),
    "a NaN": (weights(partial(spoil, torch.nan)), "not finite", "layers.1.mlp.down_proj.weight"),
    "infinite": (weights(partial(spoil, -torch.inf)), "not finite", "layers.1.mlp.down_proj.weight"),
    "integers": (weights(to_int8), "I8", "layers.0.mlp.up"),
    "truncated": (halve, WEIGHTS, "truncated or damaged"),
    "LFS": (partial(write, WEIGHTS, POINTER), "git lfs pull"),
    "pickled": (pickle_weights, "pickled"),
    "no weights": (remove(WEIGHTS), "no file named model.safetensors"),
    "no config": (remove("config.json"), "config.json"),
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), "has no tokenizer"),
    "no template": (remove("chat_template.jinja"), "has no chat template"),
    "sandbox": (partial(write, "chat_template.jinja", "{{ ''.__class__.__mro__ }}"), "SecurityError"),
    "syntax": (partial(write, "chat_template.jinja", "{% for %}"), "TemplateSyntaxError"),
    "blind": (partial(write, "chat_template.jinja", BLIND), "leaves out images"),
    "no JSON": (partial(write, "config.json", "{"), "config.json is truncated"),
    "a list": (partial(write, "generation_config.json", "[1]"), "generation_config.json holds no JSON"),
    "end is a word": (lambda f: change(f, "generation_config.json", eos_token_id="x"), "eos_token_id"),
    "other patches": (lambda f: _patches(f), "patches"),
    "AWQ": (partial(quantise, "awq"), "quantised (awq)"),
    "GPTQ": (partial(quantise, "gptq"), "quantised (gptq)"),
    "bitsandbytes": (partial(quantise, "bitsandbytes"), "quantised (bitsandbytes)"),
    "code of its own": (add_code, "custom code"),
    "an adapter": (partial(write, "adapter_config.json", '{"base_model_name_or_path": "x"}'), "merge"),
    "sharded": (partial(write, "meta.pt", ""), "ivgr export"),
}  # fmt: skip


def _patches(folder):
    fields = json.loads((folder / "processor_config.json").read_text())
    fields["image_processor"]["patch_size"] = 16
    write("processor_config.json", json.dumps(fields), folder)


def load_from_files(path):
    """As a run does, which makes the model before it reads any weight."""
    model, processor, weights = Pretrained(path).load_skeleton()
    weights.fill(model, torch.device("cpu"))
    return model, processor


@pytest.mark.parametrize(
    "load", [lambda path: Pretrained(path).load(), load_from_files], ids=["whole", "run"]
)
@pytest.mark.parametrize("name", BROKEN)
def test_a_directory_that_cannot_be_used_is_one_line(folder, name, load, monkeypatch):
    """Nothing is asked on the terminal."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    damage, *said = BROKEN[name]
    damage(folder)
    with pytest.raises(UserError) as refused:
        load(str(folder))
    message = str(refused.value)
    assert message.startswith("model.policy: ") and "\n" not in message and str(folder) in message
    assert all(part in message for part in said), message


def test_a_file_in_place_of_a_directory(tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"PK")
    with pytest.raises(UserError, match="ivgr export"):
        Pretrained(str(path)).load()


def test_the_tools_say_their_own_option(folder, capsys, tmp_path):
    halve(folder)
    (tmp_path / "q.png").write_bytes(make_sample().images[0])
    with pytest.raises(SystemExit) as stop:
        main(["ask", str(tmp_path / "q.png"), "What is it?", "--model", str(folder)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("ivgr: error: ask --model: ") and error.count("\n") == 1


def leaves(value, path=()):
    yield path
    for key, part in value.items() if isinstance(value, dict) else ():
        yield from leaves(part, (*path, key))


def put(value, path, new):
    """`value` with another part at `path`; ... removes it."""
    if not path:
        return new
    inner = {key: part for key, part in value.items() if key != path[0] or len(path) > 1 or new is not ...}
    if path[0] in inner:
        inner[path[0]] = put(value[path[0]], path[1:], new)
    return inner


ODD = (..., None, True, -1, 0, 1e30, "x", [], {"a": 1})


def alter(whole, name, share):
    """Directories in whose file `name` one part each is dropped or of another type."""
    fields = json.loads((whole / name).read_text())
    cases = [(path, new) for path in leaves(fields) if path for new in ODD]
    for path, new in random.Random(0).sample(cases, int(share * len(cases))):
        with TemporaryDirectory() as parent:
            folder = shutil.copytree(whole, Path(parent) / "model")
            (folder / name).write_text(json.dumps(put(fields, path, new)))
            yield folder, (path, new)


@pytest.mark.parametrize("share", [0.02, pytest.param(1.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PLAIN)
def test_settings_of_any_type_are_read_or_refused(whole, name, share):
    """A policy that answers, or one line."""
    seen = Counter()
    for folder, case in alter(whole, name, share):
        try:
            model, _, encoder = answer(folder)
            query = encoder(make_sample(boxes=()), ("textual",))
            TransformersEngine(SamplingConfig(max_new_tokens=2)).answer(
                model.eval(), encoder.processor.tokenizer, [query]
            )
            seen["answers"] += 1
        except UserError as refused:
            assert "\n" not in str(refused), case
            seen["is refused"] += 1
        except Exception as error:
            raise AssertionError(f"{name} {case}") from error
    print(name, dict(seen))
    assert seen["answers"]


def answer(folder):
    model, processor = Pretrained(str(folder)).load()
    return model, processor, QueryEncoder.of(model.config, processor, Prompts())


def test_a_response_ends_at_either_token(folder):
    model, processor, _ = answer(folder)
    text_end, turn_end = map(processor.tokenizer.convert_tokens_to_ids, ("<|endoftext|>", "<|im_end|>"))
    assert stop_ids(model, processor.tokenizer) == [turn_end] and end_of_turn(processor.tokenizer) == turn_end
    for named, stops in (
        (text_end, {text_end, turn_end}),
        ([text_end], {text_end, turn_end}),
        (..., {turn_end}),
    ):
        change(folder, "generation_config.json", eos_token_id=named)
        model, processor, _ = answer(folder)
        assert set(stop_ids(model, processor.tokenizer)) == stops


def test_demonstrations_end_as_the_template_ends_a_turn(folder):
    """Also where the tokenizer names another end, as tokenizers of base models do."""
    change(folder, "tokenizer_config.json", eos_token="<|endoftext|>")
    _, processor, encoder = answer(folder)
    sample = make_sample(boxes=(), reasoning={"textual": "It is red."})
    query = encode_demonstration(Demonstration(sample, "textual"), encoder)
    ((rollout,),) = (group.rollouts for group in query.groups)
    assert processor.tokenizer.convert_ids_to_tokens(int(rollout.tokens[-1])) == "<|im_end|>"


def test_no_end_at_all_is_one_line(folder):
    change(folder, "generation_config.json", eos_token_id=None)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = None
    write("config.json", json.dumps(config), folder)
    change(folder, "tokenizer_config.json", eos_token=None)
    text = (folder / "chat_template.jinja").read_text()
    write("chat_template.jinja", text.replace("<|im_end|>", ""), folder)
    with pytest.raises(UserError, match="names no token that ends a response"):
        Pretrained(str(folder)).load()


def test_what_is_written_ends_where_a_response_ends_here(folder, tmp_path):
    change(folder, "generation_config.json", eos_token_id=1453)
    model, processor, _ = answer(folder)
    write_directory(model, processor, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["eos_token_id"] == stop_ids(model, processor.tokenizer) == [1453, 1455]


def test_a_token_without_embedding_is_named_where_it_occurs(folder):
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.add_tokens(["[SEG]"])
    processor.save_pretrained(folder)
    encoder = answer(folder)[2]
    encoder(make_sample(boxes=()))
    with pytest.raises(RejectedSample, match=r"sample s0: it holds '\[SEG\]'"):
        encoder(make_sample(boxes=(), question="Where is the [SEG] circle?"))
    sample = make_sample(boxes=(), reasoning={"textual": "It is [SEG]."})
    with pytest.raises(RejectedSample, match="SEG"):
        encode_demonstration(Demonstration(sample, "textual"), encoder)


def test_a_template_that_writes_such_a_token_is_refused(folder):
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.add_tokens(["[SEG]"])
    processor.save_pretrained(folder)
    text = (folder / "chat_template.jinja").read_text()
    write("chat_template.jinja", "[SEG]" + text, folder)
    with pytest.raises(UserError, match=r"writes '\[SEG\]'"):
        Pretrained(str(folder)).load()


def test_the_reference_is_read_alike(folder, whole):
    policy = Pretrained(str(whole)).load()[0]
    rewrite(folder, partial(without, "visual"))
    with pytest.raises(UserError, match=r"model.reference.path: .* lacks 19 weights"):
        FrozenReference(str(folder)).load(policy)
    policy.config.text_config.vocab_size += 1
    with pytest.raises(UserError, match="of 1460 words, the policy a qwen2_vl of 1461"):
        FrozenReference(str(whole)).load(policy)


@pytest.mark.parametrize("fewest", [1e30, 10**12, None, "many"])
def test_an_image_processor_that_makes_pictures_of_any_size_is_refused(whole, tmp_path, fewest):
    """Before it is tried: it would take all memory there is."""
    folder = shutil.copytree(whole, tmp_path / "model")
    fields = json.loads((folder / "processor_config.json").read_text())
    fields["image_processor"]["size"]["shortest_edge"] = fewest
    (folder / "processor_config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="model.policy: .*(at least|cannot be used|can be read)"):
        Pretrained(str(folder)).load()


def test_a_configuration_of_a_model_far_larger_than_the_weights_is_refused(whole, tmp_path, monkeypatch):
    """Before it is made: without text_config it is the largest of its family."""
    folder = shutil.copytree(whole, tmp_path / "model")
    fields = json.loads((folder / "config.json").read_text())
    del fields["text_config"]
    (folder / "config.json").write_text(json.dumps(fields))
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", None)
    with pytest.raises(
        UserError, match="model.policy: .* describes [0-9,]+ parameters in config.json and holds"
    ):
        Pretrained(str(folder)).load()


@pytest.mark.parametrize("section", [None, [16, 16], [1, 1, 2.0], [-4, 10, 10], "3", 16, [1, 1, 1]])
def test_rotary_parts_that_do_not_fit_are_refused(whole, tmp_path, section):
    """Transformers meets them in the first pass: None is a TypeError of torch's split."""
    folder = shutil.copytree(whole, tmp_path / "model")
    fields = json.loads((folder / "config.json").read_text())
    fields["text_config"]["rope_parameters"]["mrope_section"] = section
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="model.policy: .*(mrope_section|can be read)") as refused:
        Pretrained(str(folder)).load()
    assert "\n" not in str(refused.value)


def test_a_model_takes_the_place_of_nothing_but_a_model(folder, tmp_path):
    """At the start of a run, which would write it at the end."""
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").touch()
    for path in (run, run / "..", tmp_path, tmp_path / "photos", tmp_path / "photos" / "one.jpg"):
        with pytest.raises(UserError, match=f"^model.export: '{path}' .*; name (another|a folder in it)$"):
            refuse_to_replace(path, "model.export", run)
    for path in (run / "model", run / "deep" / "model", folder):
        refuse_to_replace(path, "model.export", run)
    (run / "model").mkdir()
    refuse_to_replace(run / "model", "model.export", run)


def test_where_the_cold_start_writes_is_looked_at_first(tmp_path, capsys):
    config = Path(__file__).parents[2] / "configs" / "distill_sft.yaml"
    world = str(tmp_path / "world")
    main(["synth", world, "--count", "6"])
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "notes.txt").touch()
    with pytest.raises(SystemExit) as stop:
        main([
            "fit", "--config", str(config), "--trainer.default_root_dir", str(tmp_path / "run"),
            "--data.steps", "1", "--data.train", world, "--data.val", world, "--model.policy", "tiny",
        ])  # fmt: skip
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "model.export" in said and said.count("\n") == 1
