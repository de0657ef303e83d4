"""The runs of a study, their order and their settings.

In: the study's settings. Out: `Run`s, each a folder FOLDER/ARM/SEED, and the words of its
`ivgr fit`. FOLDER/study.json keeps the settings, and a repeated command must have the same.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivgr.core.atomic_files import write_json
from ivgr.core.errors import UserError
from ivgr.core.readers import read_json
from ivgr.core.resumable_jsonl import refuse_other_settings
from ivgr.launch.config import read_config
from ivgr.launch.renamed import by_new_names
from ivgr.tools.study.variants import ARMS
from ivgr.toy.world import World, write_world

TINY_WORLD, SHARDS = "ivgr.toy.TinyWorld", "ivgr.ShardDataModule"
AGAIN = "remove it, and the same command makes it again"
POLICY, TRAINED, EXAMINED = "policy", "trained.json", "examined.json"


@dataclass(frozen=True)
class Run:
    """One arm with one seed; None is the cold start, which has none."""

    arm: str
    seed: int | None
    folder: Path

    @property
    def name(self) -> str:
        title = ARMS[self.arm].title
        return title if self.seed is None else f"{title}, seed {self.seed}"


@dataclass(frozen=True)
class Training:
    """The settings that all runs share: base (the config they start from), iterations, scenes to train on,
    held-out questions, and threads per run."""

    base: Path
    iterations: int
    scenes: int
    questions: int
    threads: int

    def saved(self) -> dict[str, Any]:
        """Everything that the outcome of a run depends on, flat."""
        return {
            "iterations": self.iterations,
            "scenes": self.scenes,
            "questions": self.questions,
            "threads": self.threads,
            **{f"arm {name}": json.dumps(arm.options) for name, arm in ARMS.items() if arm.trained},
            **flatten(read_config(self.base), self.base.name + ": "),
        }

    def words(self, run: Run, world: Path) -> list[str]:
        """The command line of the run's `ivgr fit`."""
        options = {
            "seed_everything": run.seed,
            "data": SHARDS,
            "data.train": world / "train",
            "data.val": world / "val",
            "data.val_queries": 16,  # each policy is examined afterwards
            "model.iterations": self.iterations,
            "trainer.accelerator": "cpu",
            "trainer.default_root_dir": run.folder,
            **ARMS[run.arm].options,
        }
        words = [(f"--{name}", say(value)) for name, value in options.items()]
        return ["fit", "--config", str(self.base), *(word for pair in words for word in pair)]

    def draw_world(self, folder: Path) -> None:
        """The scenes that all runs share; four of five questions are paired."""
        data = read_config(self.base).get("data", {})
        if data.get("class_path") != TINY_WORLD:
            raise UserError(f"study --base: {self.base}: data.class_path must be {TINY_WORLD}")
        seed = data.get("init_args", {}).get("world_seed", 0)
        write_world(folder / "train", World("train", self.scenes, seed))
        write_world(folder / "val", World("val", -(-self.questions * 5 // 4), seed))


def plan_runs(folder: Path, arms: list[str], seeds: int, others: int) -> list[Run]:
    """The runs of `arms`, seed by seed, so that what is finished at any time is paired."""
    chosen = {name: arm for name, arm in ARMS.items() if name in arms}
    trained = [
        Run(name, seed, folder / name / str(seed))
        for seed in range(seeds)
        for name, arm in chosen.items()
        if arm.trained and (arm.tested or seed < others)
    ]
    return [Run(name, None, folder / name) for name, arm in chosen.items() if not arm.trained] + trained


def check_same_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Writes FOLDER/study.json; UserError if a study with other settings was begun there. What an earlier
    version has saved under other names is compared by today's."""
    path, settings = folder / "study.json", json.loads(json.dumps(settings))
    saved = by_new_names(read_json(path, AGAIN, dict) if path.exists() else settings)
    refuse_other_settings(path, saved, dict.fromkeys(saved) | by_new_names(settings), "another --folder")
    write_json(path, settings)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping by dotted names."""
    if not isinstance(config, dict) or not config:
        return {prefix.removesuffix("."): config}
    return {name: v for key, value in config.items() for name, v in flatten(value, f"{prefix}{key}.").items()}


def say(value: object) -> str:
    """A setting as a word of the command line."""
    return str(value) if isinstance(value, str | Path) else json.dumps(value)
