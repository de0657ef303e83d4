"""What the README says can be typed, can be typed."""

import re
import shlex
from pathlib import Path

import pytest

from ivgr.cli.main import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BASH = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL)).replace("\\\n", "")
COMMANDS = [line.partition("  #")[0].strip() for line in BASH.splitlines()]


def test_the_two_commands_stand_there_verbatim():
    assert "pip install -e . && ivgr fit --config configs/tiny.yaml" in COMMANDS
    assert 'pip install -e ".[dev]" && pytest' in COMMANDS


PARSED = ("ivgr fit", "ivgr validate", "ivgr bench")


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(PARSED)])
def test_every_command_parses(monkeypatch, capsys, command):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        main([*shlex.split(command)[1:], "--print_config"])
    shown = "repeats:" if command.startswith("ivgr bench") else "class_path:"
    assert stop.value.code == 0 and shown in capsys.readouterr().out


def test_the_own_data_example_writes_a_shard(monkeypatch, tmp_path):
    from PIL import Image

    from ivgr.data.shards import find_shards, take_stock

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (120, 100)).save("photo.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert take_stock(find_shards("data")) == {"paired": 1}


@pytest.mark.parametrize("page", ["README.md", "src/ivgr/README.md"])
def test_every_file_that_is_linked_exists(page):
    links = re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text())
    places = [((ROOT / page).parent / link) for link in links if "://" not in link]
    assert places and [place for place in places if not place.exists()] == []


def test_the_map_names_every_package():
    named = re.findall(r"^\| `(\w+)/` \|", (ROOT / "src/ivgr/README.md").read_text(), re.MULTILINE)
    present = [path.name for path in (ROOT / "src/ivgr").iterdir() if (path / "__init__.py").exists()]
    assert sorted(named) == sorted(present)


def test_every_picture_exists():
    assert all((ROOT / path).exists() for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README))
