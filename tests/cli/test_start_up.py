"""How much a command loads before it answers: modules, not seconds."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "lightning", "torchvision", "transformers", "torchmetrics", "scipy")
LOADED = """
import json, sys
from ivgr.cli.main import main
try:
    main(json.loads(sys.argv[1]))
except SystemExit:
    pass
print()
print(json.dumps(sorted(sys.modules)))
"""


def run(*words: str) -> tuple[set[str], str, str]:
    """What is loaded in the end, of HEAVY, and what was said."""
    command = [sys.executable, "-c", LOADED, json.dumps(words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *said, modules = done.stdout.splitlines()
    return {name for name in HEAVY if name in json.loads(modules)}, "\n".join(said), done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--help"], "ivgr fit --config FILE"),
        (["--version"], "ivgr 0."),
        (["fit", "--help"], "usage: ivgr fit"),
        (["validate", "--help"], "usage: ivgr validate"),
    ],
)
def test_what_needs_no_model_loads_no_library_of_models(words, said):
    loaded, out, _ = run(*words)
    assert not loaded and said in out


@pytest.mark.parametrize(
    ("word", "near"),
    [("evalute", "did you mean 'evaluate'?"), ("fti", "did you mean 'fit'?"), ("zzz", "--help")],
)
def test_a_misspelt_command_gets_a_suggestion(word, near):
    loaded, _, error = run(word)
    assert not loaded
    assert (
        error.startswith(f"ivgr: error: {word!r} is no command; ")
        and near in error
        and error.count("\n") == 1
    )


@pytest.mark.parametrize("words", [("archive", "show"), ("compare",), ("inspect",), ("pack",), ("synth",)])
def test_a_tool_that_trains_nothing_loads_no_lightning(words):
    loaded, out, _ = run(*words, "--help")
    assert loaded <= {"torch"} and out.startswith("usage: ivgr ")


def test_a_setting_is_listed_with_what_stands_under_it():
    _, out, _ = run("fit", "--help", "ivgr.trainer.update_config.UpdateConfig")
    assert "Padded tokens per micro-batch; lower it when memory runs out." in " ".join(out.split())


def test_the_settings_of_a_class_are_listed():
    _, out, _ = run("fit", "--help", "ivgr.Rewards")
    assert "accuracy" in out and "consistency" in out
    for name in ("Nothing", "ivgr.nowhere.Nothing", "ivgr.cli.main.Nothing"):
        _, _, error = run("fit", "--help", name)
        assert error.startswith("ivgr: error: fit --help: ") and error.count("\n") == 1
