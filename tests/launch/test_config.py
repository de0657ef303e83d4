"""Configs with a `base`, and every shipped config: parsed, round-tripped, and its policy on the
meta device."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ivgr.cli.main import main
from ivgr.launch.config import compose_words, merge, read_config
from ivgr.models.registry import find_shipped
from ivgr.models.skeleton import build_skeleton
from support.command_line import CONFIGS, SHIPPED, fails

RECIPES = [name for name in SHIPPED if not name.endswith("_sft")]
keys = st.sampled_from("abcd")
trees = st.recursive(
    st.integers(), lambda inner: st.dictionaries(keys, inner, min_size=1, max_size=3), max_leaves=8
)
mappings = st.dictionaries(keys, trees, max_size=4)


def leaves(tree, path=()):
    if not isinstance(tree, dict):
        return {path: tree}
    return {key: value for name in tree for key, value in leaves(tree[name], (*path, name)).items()}


@given(mappings, mappings)
def test_merging_keeps_every_own_leaf_and_each_base_leaf_that_none_replaces(base, own):
    merged, mine, old = leaves(merge(base, own)), leaves(own), leaves(base)
    assert mine.items() <= merged.items()
    for path, value in old.items():
        touching = any(path[: len(p)] == p or p[: len(path)] == path for p in mine)
        assert touching or merged[path] == value
    assert merged.keys() <= mine.keys() | old.keys()


def test_another_class_takes_none_of_the_arguments():
    base = {"judge": {"class_path": "a.A", "init_args": {"x": 1}}, "other": 1}
    assert merge(base, {"judge": {"class_path": "b.B"}}) == {"judge": {"class_path": "b.B"}, "other": 1}
    kept = merge(base, {"judge": {"class_path": "a.A", "init_args": {"y": 2}}})
    assert kept["judge"]["init_args"] == {"x": 1, "y": 2}


def write(folder: Path, **files: dict) -> Path:
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return folder / f"{next(iter(files))}.yaml"


def test_bases_are_relative_to_their_file_and_later_ones_win(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep", middle={"base": "root.yaml", "b": 2}, root={"a": 1, "b": 1, "c": 1})
    top = write(tmp_path, top={"base": ["deep/middle.yaml", "side.yaml"], "d": 4}, side={"c": 3})
    assert read_config(top) == {"a": 1, "b": 2, "c": 3, "d": 4}


def test_two_ways_to_one_base_are_no_circle(tmp_path):
    top = write(
        tmp_path, top={"base": ["x.yaml", "y.yaml"]}, x={"base": "z.yaml"}, y={"base": "z.yaml"}, z={"a": 1}
    )
    assert read_config(top) == {"a": 1}


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"top": {"base": "nowhere.yaml"}}, "nowhere.yaml, which is no file"),
        ({"top": {"base": "side.yaml"}, "side": {"base": "top.yaml"}}, "top.yaml → side.yaml → top.yaml"),
        ({"top": {"base": 3}}, "a file name or a list"),
        ({"top": {"base": "side.yaml"}, "side": ["a"]}, "must be a mapping"),
    ],
)
def test_a_bad_base_is_one_line(capsys, tmp_path, files, named):
    assert named in fails(capsys, "fit", "--config", str(write(tmp_path, **files)))


def test_a_bad_setting_in_a_composed_config_is_named(capsys, tmp_path):
    tiny = str(CONFIGS / "tiny.yaml")
    path = write(tmp_path, top={"base": tiny, "model": {"init_args": {"iteratoins": 3}}})
    assert "iteratoins" in fails(capsys, "fit", "--config", str(path))


def test_only_configs_with_a_base_are_composed(tmp_path):
    tiny = str(CONFIGS / "tiny.yaml")
    words = ["fit", "--config", tiny, "--config=/no/file.yaml", "--seed_everything", "1"]
    assert compose_words(words) == words
    own = write(tmp_path, own={"base": tiny, "seed_everything": 5})
    for words in (["fit", "--config", str(own)], ["fit", f"--config={own}"], ["fit", "-c", str(own)]):
        text = compose_words(words)[-1].removeprefix("--config=")
        assert yaml.safe_load(text) == yaml.safe_load((CONFIGS / "tiny.yaml").read_text()) | {
            "seed_everything": 5
        }


def test_a_number_as_python_writes_it_stays_a_number(capsys, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        f"base: {CONFIGS / 'tiny.yaml'}\nmodel: {{init_args: {{update: {{optimizer: {{lr: 3e-6}}}}}}}}\n"
    )
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(path), "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["update"]["optimizer"]["lr"] == 3e-6


def resolve(capsys, name):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(CONFIGS / f"{name}.yaml"), "--print_config"])
    assert stop.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_each_recipe_has_a_cold_start():
    assert len(RECIPES) == 6 and set(SHIPPED) == set(RECIPES) | {f"{name}_sft" for name in RECIPES}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_policy_of_every_config_is_made_on_the_meta_device(capsys, name):
    config = resolve(capsys, name)
    policy = config["model"]["init_args"]["policy"]["init_args"]
    family, size = find_shipped(policy["path"])
    assert size.upper() in policy["path"] and size in name
    model = build_skeleton(family.config(size))
    assert model.config.model_type == family.name and model.lm_head.weight.is_meta
    assert config["trainer"]["default_root_dir"] == f"runs/{name}"
    assert (policy["min_pixels"], policy["max_pixels"]) == (3136, 3211264)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_the_papers(capsys, name):
    config = resolve(capsys, name)
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    update = model["update"]
    assert (model["iterations"], update["mini_batches"], update["clip_norm"]) == (360, 4, 1.0)
    assert (data["prompts"], data["paired_ratio"]) == (512, 0.9)
    sampling = model["engine"]["init_args"]["sampling"]
    assert (sampling["group_size"], sampling["temperature"], sampling["top_p"]) == (5, 1.0, 0.99)
    assert (model["encoding"]["max_prompt_tokens"], sampling["max_new_tokens"]) == (8192, 4096)
    loss = model["update"]["loss"]
    assert (loss["clip_low"], loss["clip_high"], loss["dual_clip"], loss["kl_weight"]) == (
        0.2,
        0.28,
        3.0,
        0.01,
    )
    assert (model["update"]["optimizer"]["name"], model["update"]["optimizer"]["weight_decay"]) == (
        "adamw",
        0.01,
    )
    assert model["update"]["optimizer"]["lr"] == (1e-5 if "lora" in name else 1e-6)
    assert model["update"]["schedule"]["warmup"] == 0.02 and loss["kl"] == "k3"
    assert model["rewards"]["init_args"]["archive"]["init_args"]["threshold"] == 0.3
