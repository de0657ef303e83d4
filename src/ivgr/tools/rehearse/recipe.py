"""A recipe as a rehearsal needs it: the module and the strategy that `ivgr fit` would use, and how many
queries an iteration has.

In: a config file. Out: a `Recipe`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ivgr.core.errors import UserError
from ivgr.core.lightning_private import RunsNothing
from ivgr.data.stream import BatchComposition
from ivgr.launch.config import compose_words
from ivgr.launch.lightning_cli import CLI, run_lightning
from ivgr.models.pretrained import Pretrained
from ivgr.rollout.engine_timeout import TimeoutEngine
from ivgr.rollout.transformers_engine import TransformersEngine
from ivgr.tools.plan.run_spec import count_gpus, gpus_of_node, prompts_each
from ivgr.trainer.base_module import PolicyModule

STATED = re.compile(r"GPUs? of (\d+) ?GB")


class Instantiated(RunsNothing, CLI):
    """Makes the classes of a config and stops, without its callbacks and loggers."""

    def instantiate_classes(self) -> None:
        config = self.config["fit"]
        self.data_settings = config.data.as_dict()
        self.trainer_settings = config.trainer.as_dict()
        config.trainer.callbacks = config.trainer.logger = None
        self.made = self.parser.instantiate_classes(self.config)


@dataclass
class Recipe:
    """mix: queries of an iteration on one rank, of a cold start demonstrations. streams: of paired queries.
    devices: GPUs of a node. layers: to which the models are cut, None for all. limit: bytes of a GPU."""

    module: PolicyModule
    strategy: Any
    cold_start: bool
    ranks: int
    devices: int
    mix: BatchComposition
    streams: tuple[str, ...]
    layers: int | None
    limit: float


def read_recipe(path: Path, ranks: int | None, layers: int | None, limit: float) -> Recipe:
    """The recipe of a config file; UserError as the parser's, and for what cannot be rehearsed."""
    if not path.is_file():
        raise UserError(f"--config: no file at {path}")
    words = compose_words(["fit", "--config", str(path)])
    cli = run_lightning([*words, "--model.judge", "ivgr.judge.RulesAlone"], Instantiated)
    module, trainer, data = cli.made["fit"].model, cli.trainer_settings, cli.data_settings["init_args"]
    cold_start = module.kind == "sft"
    ranks = ranks or count_gpus(trainer)
    _prepare(module)
    if cold_start:
        mix, streams = BatchComposition(0, max(data["batch"] // ranks, 1)), ()
    else:
        streams = tuple(data["streams"])
        mix = BatchComposition.of(prompts_each(data, ranks), data["paired_ratio"], len(streams))
    strategy, devices = cli.made["fit"].trainer.strategy, gpus_of_node(trainer, ranks)
    return Recipe(module, strategy, cold_start, ranks, devices, mix, streams, layers, limit)


def stated_memory(path: Path) -> str:
    """The memory of a GPU that the config or one of its bases names in words, else 80GB."""
    if not path.is_file():
        raise UserError(f"--config: no file at {path}")
    text = path.read_text("utf-8")
    if found := STATED.search(text):
        return f"{found[1]}GB"
    bases = (yaml.safe_load(text) or {}).get("base", [])
    for base in [bases] if isinstance(bases, str) else bases:
        if (path.parent / base).is_file() and (
            found := STATED.search((path.parent / base).read_text("utf-8"))
        ):
            return f"{found[1]}GB"
    return "80GB"


def _prepare(module: PolicyModule) -> None:
    """Takes the engine out of its timeout, which is another thread; UserError for a policy or engine that
    cannot be rehearsed."""
    if not isinstance(module.source, Pretrained):
        raise UserError(
            f"rehearse: model.policy is {type(module.source).__name__}, which makes its weights itself; "
            "name a path by ivgr.Pretrained"
        )
    engine: Any = module.engine
    engine = engine.engine if isinstance(engine, TimeoutEngine) else engine
    module.engine = engine
    if not isinstance(engine, TransformersEngine):
        raise UserError(
            f"rehearse: model.engine is {type(engine).__name__}, which needs a real GPU; rehearse with "
            "ivgr.TransformersEngine"
        )
