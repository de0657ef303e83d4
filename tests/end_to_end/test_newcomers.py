"""What a newcomer does first works by typing the manuals' own code blocks in an empty folder."""

import gzip
import json
import re
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from ivgr.core.errors import UserError
from ivgr.models import Family, register
from ivgr.models.registry import SHIPPED
from ivgr.plotting.event_files import read_curves
from support.manuals import ROOT, blocks, commands_of, section, type_in, write_files

CONTRIBUTING, MAP = ".github/CONTRIBUTING.md", "src/ivgr/README.md"
SMALL = (
    " --data.train_count 60 --data.val_count 8 --data.val_queries 2 --data.prompts 8 --held_out_times 0"
    " --model.engine.sampling.group_size 2"
)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Empty, but for the config that the texts name."""
    (tmp_path / "configs").mkdir()
    shutil.copy(ROOT / "configs" / "tiny.yaml", tmp_path / "configs")
    return tmp_path


def rows_of(run: Path, iteration: int) -> list[dict]:
    """The rollouts that a run has recorded."""
    text = gzip.decompress((run / "rollouts" / f"{iteration:06d}.jsonl.gz").read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_a_reward_term_is_in_the_sum_the_record_the_board_and_the_progress(folder):
    text = section(CONTRIBUTING, "Add a reward")
    assert write_files(text, folder) == ["mine.py", "mine.yaml"]
    (command,) = commands_of(text)
    said = type_in(folder, command + SMALL + " --model.iterations 10")
    assert re.search(r"iteration 10/10 .*brevity t \d", said) and "brevity g" not in said
    run = folder / "runs" / "mine"
    (curve,) = [curve for name, curve in read_curves(run).items() if name == "textual/reward/brevity"]
    for iteration, shown in enumerate(curve.values, start=1):
        rows = rows_of(run, iteration)
        textual = [row for row in rows if row["stream"] == "textual"]
        assert textual and all("brevity" not in row["terms"] for row in rows if row not in textual)
        for row in textual:
            terms, short = row["terms"], max(0, 1 - len(row["tokens"]) / 100)
            assert terms["brevity"] == pytest.approx(short)
            others = sum(terms[name] for name in ("format", "accuracy", "consistency"))
            assert row["reward"] == pytest.approx(others + short / 2)
        mean = sum(row["terms"]["brevity"] for row in textual) / len(textual)
        assert shown == pytest.approx(mean, rel=1e-5)


@pytest.mark.slow
def test_a_family_is_one_file(folder):
    text = section(CONTRIBUTING, "Add a family")
    assert write_files(text, folder) == ["my_family.py", "my_family.yaml"]
    scratch, plan, fit = commands_of(text)
    assert "random parameters of qwen3_vl_moe tiny" in type_in(folder, scratch)
    stock = AutoModelForImageTextToText.from_pretrained(folder / "random_tiny")
    assert type(stock).__name__ == "Qwen3VLMoeForConditionalGeneration"
    planned = re.search(r"([\d.]+) billion parameters", type_in(folder, plan))
    assert float(planned[1]) == round(stock.num_parameters() / 1e9, 3)
    type_in(folder, fit + SMALL)
    streams = {row["stream"] for row in rows_of(folder / "runs" / "tiny", 1)}
    assert {"grounded", "textual"} <= streams
    type_in(folder, "python -m my_family export runs/tiny/checkpoints/last.ckpt exported")
    trained = AutoModelForImageTextToText.from_pretrained(folder / "exported")
    assert trained.state_dict().keys() == stock.state_dict().keys()
    assert "add another by ivgr.models.register" in refused(
        folder, "python -m ivgr plan --config my_family.yaml"
    )


def refused(folder: Path, command: str) -> str:
    """The one line of a command that ends with exit code 2."""
    line = type_in(folder, f"{command} 2>&1; test $? = 2").splitlines()[-1]
    assert line.startswith("ivgr: error: ")
    return line


@pytest.mark.parametrize(
    ("name", "said"), [("qwen2_vl", "ships with ivgr"), ("llava_9", "no model type 'llava_9'")]
)
def test_a_family_that_ships_or_that_transformers_lacks_is_not_registered(name, said):
    shipped = SHIPPED[0]
    with pytest.raises(UserError, match=said):
        register(Family(**{**vars(shipped), "name": name}))


def test_the_map_finds_where_the_kl_is_computed(folder):
    shutil.copytree(ROOT / "kernels", folder / "kernels")
    shutil.copytree(ROOT / "src/ivgr/trainer", folder / "src/ivgr/trainer")
    defined, called = (
        type_in(folder, line) for line in commands_of(section(MAP, "Where is the KL computed?"))
    )
    assert "src/ivgr/trainer/policy_update.py" in called
    found = re.findall(r"^(kernels/linear)\.py:(\d+):def (\w+)\(", defined, re.MULTILINE)
    ((file, line, name),) = found
    assert f"{name}(" in called and (ROOT / f"{file}.py").read_text().splitlines()[int(line) - 1].startswith(
        "def"
    )
    compute = getattr(import_module("ivgr." + file.replace("/", ".")), name)
    generator = torch.Generator().manual_seed(0)
    hidden, other = (torch.randn(7, 16, generator=generator) for _ in range(2))
    head, ids = torch.randn(50, 16, generator=generator), torch.randint(50, (7,), generator=generator)
    policy, reference = ((states.double() @ head.double().T).log_softmax(-1) for states in (hidden, other))
    exact = (policy.exp() * (policy - reference)).sum(-1)
    log_ratio = (reference - policy)[torch.arange(7), ids]
    for kl, expected in {"exact": exact, "k3": log_ratio.exp() - 1 - log_ratio}.items():
        got = compute(hidden, head, ids, ref_hidden=other, ref_weight=head, kl=kl).kl
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_one_iteration_in_python_is_that_of_the_command(folder):
    text = section(MAP, "One iteration in Python")
    (code,) = blocks(text, "python")
    assert len(code.splitlines()) <= 25
    (folder / "one.py").write_text(code)
    printed = re.findall(
        r"^(grounded|textual|single) ([\d.]+)$", type_in(folder, "python one.py"), re.MULTILINE
    )
    (command,) = re.findall(r"`(ivgr fit [^`]+)`", text)
    drawn = re.search(r"train_count=(\d+), val_count=(\d+)", code)
    less = (
        f" --data.train_count {drawn[1]} --data.val_count {drawn[2]} --data.val_queries 2 --held_out_times 0"
    )
    type_in(folder, f"python -m {command}{less}")
    rows = rows_of(folder / "runs" / "tiny", 1)
    for stream in ("grounded", "textual", "single"):
        rewards = [row["reward"] for row in rows if row["stream"] == stream]
        assert float(dict(printed)[stream]) == sum(rewards) / len(rewards)


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("newcomer") / "ivgr"
    subprocess.run(["git", "clone", "--quiet", ROOT, place], check=True)
    return place


@pytest.mark.slow
def test_the_tests_of_one_file_run(clone):
    _, one = commands_of(section(CONTRIBUTING, "Before a pull request"))
    assert re.search(r"\b\d+ passed in", type_in(clone, one, clone / "src"))


@pytest.mark.slow
def test_the_fast_tests_are_found_and_leave_the_slow_ones_out(clone):
    fast, _ = commands_of(section(CONTRIBUTING, "Before a pull request"))
    said = type_in(clone, f"{fast} --collect-only -q", clone / "src")
    counts = re.search(r"^(\d+)/(\d+) tests collected \((\d+) deselected\)", said, re.MULTILINE)
    chosen, total, left_out = map(int, counts.groups())
    assert chosen + left_out == total and left_out > 10
    assert f"::{test_the_map_finds_where_the_kl_is_computed.__name__}" in said
    assert f"::{test_a_family_is_one_file.__name__}" not in said
