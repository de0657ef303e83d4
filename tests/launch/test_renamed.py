"""What earlier versions called otherwise is a line that says what it is called now."""

from importlib import import_module

import pytest
import yaml

from ivgr.cli.main import main
from ivgr.launch.renamed import CLASSES, SETTINGS, renamed_class, renamed_setting
from support.command_line import CONFIGS, fails


@pytest.mark.parametrize("old", CLASSES)
def test_a_class_is_there_under_its_new_name_alone(old):
    module, _, name = CLASSES[old].rpartition(".")
    assert getattr(import_module(module), name).__name__ == old.rpartition(".")[2] == name
    with pytest.raises((ImportError, AttributeError)):
        getattr(import_module(old.rpartition(".")[0]), name)


def test_only_whole_names_are_old_ones():
    assert renamed_class("class_path: 'ivgr.sft.SFT'") == ("ivgr.sft.SFT", "ivgr.SFT")
    for other in ("mine.ivgr.sft.SFT", "ivgr.sft.SFTs", "ivgr.SFT", ""):
        assert renamed_class(other) is None


def test_an_old_config_and_an_old_option_are_one_line(tmp_path, capsys):
    config = yaml.safe_load((CONFIGS / "tiny.yaml").read_text())
    config["model"]["class_path"] = "ivgr.module.IVGR"
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(config))
    said = "ivgr.module.IVGR is named ivgr.IVGR now"
    assert said in fails(capsys, "fit", "--config", str(path))
    tiny = ("fit", "--config", str(CONFIGS / "tiny.yaml"))
    assert said in fails(capsys, *tiny, "--model", "ivgr.module.IVGR")
    judged = fails(capsys, *tiny, "--model.judge", "ivgr.judge.RuleJudge")
    assert "model.judge" in judged and "ivgr.toy.RuleJudge now" in judged


@pytest.mark.parametrize("old", SETTINGS)
def test_an_old_setting_is_one_line_that_names_the_new_one(old, tmp_path, capsys):
    said = f"{old}.deep is named {SETTINGS[old]}.deep now"
    tiny = ("fit", "--config", str(CONFIGS / "tiny.yaml"))
    assert said in fails(capsys, *tiny, f"--{old}.deep", "1")
    config = yaml.safe_load((CONFIGS / "tiny.yaml").read_text())
    *above, name = old.removeprefix("model.").split(".")
    place = config["model"]["init_args"]
    for key in above:
        place = place[key]["init_args"]
    place[name] = {"deep": 1}
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(config))
    assert SETTINGS[old] + ".deep" in fails(capsys, "fit", "--config", str(path))


@pytest.mark.parametrize("new", SETTINGS.values())
def test_the_new_name_is_a_setting(new, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(CONFIGS / "tiny.yaml"), "--print_config"])
    place = yaml.safe_load(capsys.readouterr().out)
    for key in new.split("."):
        place = place.get("init_args", place)[key]
    assert stop.value.code == 0


def test_what_was_always_called_so_is_not_renamed():
    for name in ("model.update.loss.kl", "model.iterations", "model.losses", "data.prompts", "optimizer"):
        assert renamed_setting(name) is None
