"""What the READMEs say can be typed, can be typed; what they link, show and name is there."""

import ast
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from jsonargparse import capture_parser

from ivgr.cli.commands import load_tool
from ivgr.cli.main import main
from ivgr.launch.renamed import CLASSES
from support.manuals import blocks, commands_of
from support.sweep import outcome_of, parsed_only

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CHANGELOG = ".github/CHANGELOG.md"
FOLDERS = ("", "configs", "kernels", "tests")
PATHS = [ROOT / folder / "README.md" for folder in FOLDERS] + sorted((ROOT / "src").rglob("README.md"))
MANUALS = {str(path.relative_to(ROOT)): path.read_text() for path in PATHS}
PAGES = MANUALS | {
    f".github/{path.name}": path.read_text() for path in sorted((ROOT / ".github").glob("*.md"))
}


def spans(page: str) -> list[str]:
    """What stands between single backquotes outside code blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", page, flags=re.DOTALL | re.MULTILINE))


COMMANDS = commands_of(README)
TYPED = dict.fromkeys(
    part.strip() for page in PAGES.values() for line in commands_of(page) for part in line.split("&&")
)
PARSED = ("ivgr fit", "ivgr validate", "ivgr bench")


def test_the_two_commands_stand_there_verbatim():
    assert "pip install -e . && ivgr fit --config configs/tiny.yaml" in COMMANDS
    assert 'pip install -e ".[dev]" && pytest' in COMMANDS


def test_the_readme_is_short_and_leads_to_every_manual():
    assert len(README.splitlines()) <= 200
    assert [page for page in PAGES if page != "README.md" and f"]({page}" not in README] == []


@pytest.mark.parametrize("package", sorted((ROOT / "src" / "ivgr").rglob("__init__.py")), ids=str)
def test_every_file_that_a_package_describes_is_in_it(package):
    named = re.findall(r"\b([a-z_0-9]+\.py)\b", ast.get_docstring(ast.parse(package.read_text())) or "")
    assert [name for name in named if not (package.parent / name).is_file()] == []


@pytest.mark.parametrize("command", [c for c in TYPED if c.startswith(PARSED)])
def test_every_command_parses(monkeypatch, capsys, command):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        main([*shlex.split(command)[1:], "--print_config"])
    shown = "json:" if command.startswith("ivgr bench") else "class_path:"
    assert stop.value.code == 0 and shown in capsys.readouterr().out


@pytest.mark.parametrize("command", [c for c in TYPED if c.startswith("ivgr ") and not c.startswith(PARSED)])
def test_every_other_tool_takes_what_is_typed(monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    with parsed_only():
        outcome = outcome_of(shlex.split(command)[1:])
    assert outcome.accepted, outcome.line


def options_of(name: str, subcommand: str | None) -> set[str]:
    parser = capture_parser(lambda: main([name]))
    if subcommand:
        parser = parser._subcommands_action._name_parser_map[subcommand]
    return {option for action in parser._actions for option in action.option_strings}


MENTIONED = dict.fromkeys(
    span for page in PAGES.values() for span in spans(page) if re.match(r"ivgr [a-z]", span)
)


@pytest.mark.parametrize("command", MENTIONED)
def test_every_command_that_is_mentioned_exists_with_its_options(command):
    name, *rest = command.split()[1:]
    lightning = name in ("fit", "validate")
    subcommands = (name,) if lightning else load_tool(name)
    subcommand = None
    if lightning or (isinstance(subcommands, dict) and rest):
        subcommand = name if lightning else rest[0]
        assert subcommand in subcommands
    given = {word.partition("=")[0].partition(".")[0] for word in rest if word.startswith("--")}
    assert not given or given <= options_of(name, subcommand)


def test_the_own_data_example_writes_a_shard(monkeypatch, tmp_path):
    from PIL import Image

    from ivgr.data.shards import find_shards, validate_shards

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (120, 100)).save("photo.jpg")
    page = "src/ivgr/data/README.md"
    (code,) = blocks(MANUALS[page], "python")
    exec(compile(code, page, "exec"), {})
    assert validate_shards(find_shards("data")) == {"paired": 1}


@pytest.mark.parametrize("page", PAGES)
def test_other_python_compiles_and_imports_what_exists(page):
    for code in blocks(PAGES[page], "py"):
        compile(code, page, "exec")
        exec("\n".join(line for line in code.splitlines() if line.startswith(("from ", "import "))), {})


@pytest.mark.parametrize("page", [page for page in PAGES if page != CHANGELOG])
def test_every_class_and_module_that_is_named_exists(page):
    """The changelog names what is no more; `test_renamed` looks at what it is called now."""
    named = re.findall(r" (ivgr\.[A-Z]\w+)", "\n".join(commands_of(PAGES[page])))
    for block in blocks(PAGES[page], "yaml"):
        yaml.safe_load(block)
        named += re.findall(r"class_path: (ivgr[\w.]+)", block)
    for span in spans(PAGES[page]):
        named += re.findall(r"(?<![\w./])ivgr(?:\.\w+)+(?<!\.json)(?!\w)", span)
    assert [name for name in named if not resolves(name)] == []


def resolves(name: str) -> bool:
    """Whether `name` is a module, or stands in one."""
    module, _, attribute = name.rpartition(".")
    try:
        return hasattr(import_module(module), attribute) or bool(import_module(name))
    except ImportError:
        return False


@pytest.mark.parametrize("page", PAGES)
def test_every_source_file_that_is_named_exists(page):
    """In the page's own folder, its helpers, under src/ivgr or at the root; NAME.py is anybody's."""
    own = (ROOT / page).parent
    places = (own, own / "support", ROOT / "src/ivgr", ROOT)
    found = [span for span in spans(PAGES[page]) if re.fullmatch(r"[a-z0-9_./]+\.py", span)]
    if page.startswith(".github"):
        found = [span for span in found if "/" in span]
    assert [span for span in found if not any((place / span).exists() for place in places)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_linked_exists(page):
    links = re.findall(r"\]\(([^)#]+)", PAGES[page])
    places = [((ROOT / page).parent / link) for link in links if "://" not in link]
    assert [place for place in places if not place.exists()] == []
    assert places or page == "tests/README.md"


def anchors_of(text: str) -> set[str]:
    """Of its headings, as GitHub makes them."""
    plain = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    heads = re.findall(r"^#+ (.*)$", plain, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_every_heading_that_is_linked_exists(page):
    for link, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", PAGES[page]):
        target = (ROOT / page).parent / link if link else ROOT / page
        assert anchor in anchors_of(target.read_text()), f"{link}#{anchor}"


def test_the_map_names_every_package():
    named = re.findall(r"^\| `(\w+)/` \|", (ROOT / "src/ivgr/README.md").read_text(), re.MULTILINE)
    present = [path.name for path in (ROOT / "src/ivgr").iterdir() if (path / "__init__.py").exists()]
    assert sorted(named) == sorted(present)


def test_every_picture_exists():
    pictures = [
        (ROOT / page).parent / path
        for page, text in PAGES.items()
        for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    ]
    assert len(pictures) >= 5 and all(picture.exists() for picture in pictures)


def test_the_changelog_names_every_class_that_was_renamed():
    rows = re.findall(r"^\| `(ivgr[\w.]+)` \| `(ivgr[\w.]+)` \|$", PAGES[CHANGELOG], re.MULTILINE)
    assert dict(rows) == CLASSES


def test_the_table_of_recipes_names_every_config():
    named = re.findall(r"\]\((\w+\.yaml)\)", MANUALS["configs/README.md"])
    named += [name.replace(".yaml", "_sft.yaml") for name in named if "vl_" in name]
    assert {path.name for path in (ROOT / "configs").glob("*.yaml")} == set(named)
