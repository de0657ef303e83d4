"""Small variants of the shipped recipes, and processes on the null GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ivgr.tools.rehearse import null_gpu
from support.command_line import CONFIGS

needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or null_gpu.find_compiler() is None,
    reason="the null GPU is a library for Linux that a C compiler must build",
)
PROMPT, ANSWER, PIXELS = 1024, 96, 256 * 784


def write_small(folder: Path, recipe: str, **model) -> Path:
    """A config on `recipe` with short prompts and answers and few queries."""
    cold_start = recipe.endswith("_sft")
    settings = {
        "encoding": {"max_prompt_tokens": PROMPT},
        "engine": {"init_args": {"batch_queries": 4, "sampling": {"max_new_tokens": ANSWER}}},
        "policy": {"init_args": {"max_pixels": PIXELS}},
    }
    settings["update"] = {"token_budget": 2048}
    config = {
        "base": str(CONFIGS / f"{recipe}.yaml"),
        "model": {"init_args": settings | model},
        "data": {"init_args": {} if cold_start else {"prompts": 64}},
    }
    path = folder / f"{recipe}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def rehearse(
    config: Path, *options: str, file: Path | None = None, layers: int | None = 2
) -> tuple[dict, str, int]:
    """The figures, what was said and the exit code of a rehearsal, by default at two layers and with the
    figures beside the config."""
    file = file or config.with_suffix(".json")
    cut = ["--layers", str(layers)] if layers else []
    words = ["rehearse", "--config", str(config), *cut, "--json", str(file), *options]
    paths = os.pathsep.join([str(config.parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "ivgr", *words],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    return json.loads(file.read_text()) if file.exists() else {}, done.stdout + done.stderr, done.returncode


def run_on_null_gpu(script: str) -> str:
    """What `script` prints."""
    environment = null_gpu.child_environment(400)
    environment["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment
    )
    assert not done.returncode, done.stderr
    return done.stdout
