"""`ivgr bench gpu`: what it runs, what it keeps, and that it runs as a whole on the null GPU."""

import json
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import support.interpreter  # noqa: F401  before triton
from ivgr.cli.main import main
from ivgr.core.errors import UserError
from ivgr.tools.bench import gpu
from ivgr.tools.bench.children import run_child
from ivgr.tools.bench.decoding_kernels import DecodingSetting, decoding_pairs
from ivgr.tools.bench.gpu_parts import PARTS, Part
from ivgr.tools.bench.hardware import describe
from ivgr.tools.rehearse import null_gpu
from support.command_line import fails
from support.rehearsing import needs_compiler
from support.sweep import outcome_of, parsed_only

ROOT = Path(__file__).parents[3]
HARDWARE = {"gpu": "a GPU", "bytes": 80e9, "driver": "1", "commit": "one", "versions": {"torch": "3"}}
SMALL = Part("small", "README.md", "iVGR", "ivgr", ("bench", "update"), 60)


@pytest.fixture
def ran(monkeypatch):
    """The names of the parts that were run; those called "bad" fail."""
    names = []

    def run_part(part: Part, seconds: float) -> dict:
        names.append(part.name)
        state = gpu.FAILED if part.name == "bad" else gpu.DONE
        return {"state": state, "seconds": 1.0, "exit_code": 0, "error": "why", "figures": {}}

    monkeypatch.setattr(gpu, "run_part", run_part)
    return names


def run(path, parts, seconds=600.0, limit=80e9):
    known = json.loads(path.read_text()) if path.exists() else {}
    return gpu.run_parts(parts, path, known, HARDWARE, seconds, limit)


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_every_part_is_promised_and_can_be_typed(monkeypatch, part):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    page = (ROOT / part.page).read_text()
    assert any(line.strip("# ") == part.heading for line in page.splitlines() if line.startswith("#"))
    assert part.name in (ROOT / "src/ivgr/tools/bench/README.md").read_text()
    if part.module == "pytest":
        assert all((ROOT / word).is_file() for word in part.words if word.startswith("tests/"))
        return
    with parsed_only():
        outcome = outcome_of(shlex.split(part.cut(2).command)[1:])
    assert outcome.accepted, outcome.line


def test_what_is_done_is_kept_and_what_failed_is_run_again(tmp_path, ran):
    path, bad = tmp_path / "gpu.json", replace(SMALL, name="bad")
    run(path, [SMALL, bad])
    run(path, [SMALL, bad])
    assert ran == ["small", "bad", "bad"]
    run(path, [replace(SMALL, words=("bench", "rollout"))])
    assert ran[3:] == ["small"]
    written = json.loads(path.read_text())
    assert written["hardware"] == HARDWARE and written["parts"].keys() == {"small", "bad"}
    assert written["parts"]["small"]["command"] == "ivgr bench rollout"
    assert written["parts"]["small"]["commit"] == "one"


def test_what_finds_no_time_or_memory_is_not_run(tmp_path, ran):
    found = run(tmp_path / "a.json", [SMALL], seconds=1)
    assert found["small"]["state"] == "not run" and "time" in found["small"]["error"]
    found = run(tmp_path / "b.json", [SMALL], limit=70e9)
    assert found["small"]["state"] == "not run" and "75 GB" in found["small"]["error"]
    assert ran == []


def test_the_exit_code_is_one_if_a_part_failed(monkeypatch, tmp_path, capsys, ran):
    monkeypatch.setattr(gpu, "describe_hardware", lambda: HARDWARE)
    monkeypatch.setattr(gpu, "PARTS", {part.name: part for part in (SMALL, replace(SMALL, name="bad"))})
    path = str(tmp_path / "gpu.json")
    main(["bench", "gpu", "--json", path, "--parts", "small"])
    with pytest.raises(SystemExit) as stop:
        main(["bench", "gpu", "--json", path, "--parts", "small", "bad"])
    assert stop.value.code == 1 and ran == ["small", "bad"]
    assert "failed: why" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"parts": 1, "hardware": 1}', "\0"])
def test_a_file_of_another_kind_is_not_overwritten(tmp_path, capsys, content):
    path = tmp_path / "gpu.json"
    path.write_text(content)
    assert "name another file" in fails(capsys, "bench", "gpu", "--json", str(path))
    assert path.read_text() == content


def test_figures_of_two_machines_are_not_mixed(monkeypatch, tmp_path, capsys, ran):
    path = tmp_path / "gpu.json"
    run(path, [SMALL])
    monkeypatch.setattr(gpu, "describe_hardware", lambda: HARDWARE | {"gpu": "another", "commit": "two"})
    error = fails(capsys, "bench", "gpu", "--json", str(path))
    assert "gpu a GPU, here is another" in error


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--parts", "small"), "is none of tests, "), (("--memory", "much"), "bench gpu --memory is 'much'")],
)
def test_a_slip_is_named(capsys, words, said):
    assert said in fails(capsys, "bench", "gpu", *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(monkeypatch, capsys, tmp_path):
    class Said:
        stdout = f"a warning\n{json.dumps(describe())}\n"

    monkeypatch.setattr(gpu.subprocess, "run", lambda *_, **__: Said)
    assert "--null tries it out" in fails(capsys, "bench", "gpu", "--json", str(tmp_path / "gpu.json"))
    for command in ("decoding", "rehearsed"):
        assert "there is none here" in fails(capsys, "bench", command)


def test_a_child_that_takes_too_long_is_killed_with_its_own(tmp_path):
    alive = tmp_path / "alive"
    script = f"(sleep 4; touch {alive}) & echo begun; echo; sleep 60"
    code, lines = run_child(["bash", "-c", script], 1, tmp_path)
    assert code is None and lines == ["begun"]
    time.sleep(4)
    assert not alive.exists()


def test_a_part_that_fails_leaves_its_last_words(monkeypatch):
    words = "import sys; print('begun'); sys.exit('no room')"
    monkeypatch.setattr(null_gpu, "module_command", lambda *_: [sys.executable, "-c", words])
    found = gpu.run_part(SMALL, 60)
    assert (found["state"], found["exit_code"], found["error"]) == ("failed", 1, "no room")
    assert found["output"] == ["begun", "no room"]


def test_a_part_that_time_cuts_short_has_not_failed(monkeypatch):
    monkeypatch.setattr(null_gpu, "module_command", lambda *_: ["sleep", "60"])
    assert gpu.run_part(SMALL, 0.2)["state"] == "not run"
    found = gpu.run_part(replace(SMALL, seconds=0), 0)
    assert found["state"] == "failed" and "stopped" in found["error"]


def test_on_the_null_gpu_bytes_are_kept_and_seconds_are_not(monkeypatch):
    figures = {"tree": {"seconds": 1.5, "peak_bytes": 7}, "list": [0.5, "a", True, None]}
    assert gpu.as_measured(figures) == figures
    monkeypatch.setenv(null_gpu.LOADED, "library")
    blank = {"tree": {"seconds": None, "peak_bytes": 7}, "list": [None, "a", True, None]}
    assert gpu.as_measured(figures) == blank


@pytest.mark.parametrize("own", [1, 64, 70])
def test_the_kernels_of_decoding_and_what_is_stock_do_the_same(own):
    setting = DecodingSetting(
        queries=2, siblings=3, prefix=70, own=own, heads=2, group=3, size=16, hidden=48, intermediate=80,
        dtype="float32",
    )  # fmt: skip
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for pair in decoding_pairs(setting, device).values():
        torch.testing.assert_close(pair.ours(), pair.stock(), atol=1e-5, rtol=0)


def on_null_gpu(path: Path, *options: str) -> dict:
    words = ["-m", "ivgr", "bench", "gpu", "--null", "--layers", "2", "--json", str(path), *options]
    code, lines = run_child([sys.executable, *words], 1200, path.parent)
    assert code == 0 and lines[-1] == "null GPU: no numbers", lines
    return json.loads(path.read_text())


@needs_compiler
def test_a_part_on_the_null_gpu(tmp_path):
    report = on_null_gpu(tmp_path / "gpu.json", "--parts", "decoding")
    assert report["hardware"]["gpu"].endswith("(null)")
    part = report["parts"]["decoding"]
    assert part["state"] == "done" and part["seconds"] > 0
    attention = part["figures"]["kernels"]["attention"]
    assert attention["seconds"] is None and part["figures"]["setting"]["prefix"] == 2560


@needs_compiler
@pytest.mark.slow
def test_all_parts_on_the_null_gpu(tmp_path):
    pytest.importorskip("trl", reason='needs pip install "ivgr[bench]"')
    parts = on_null_gpu(tmp_path / "gpu.json")["parts"]
    assert {name: part["state"] for name, part in parts.items()} == dict.fromkeys(PARTS, "done")
    rehearsed = parts["rehearsed"]["figures"]
    for name in ("tree", "rows"):  # the same code on the same GPU
        assert rehearsed[name]["peak_bytes"] == rehearsed[name]["rehearsed_bytes"] > 0
    assert parts["refill"]["figures"]["static"]["steps"] > parts["refill"]["figures"]["tree"]["steps"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="make it first"):
        gpu.gpu(json=tmp_path / "none" / "gpu.json")
