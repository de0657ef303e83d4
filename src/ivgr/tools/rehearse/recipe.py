"""A recipe as a rehearsal needs it: the module that `ivgr fit` would train, whose policy has every shape and
no weights.

In: a config file. Out: a `Recipe`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, ProcessorMixin

from ivgr.core.errors import UserError
from ivgr.core.lightning_private import RunsNothing
from ivgr.core.settings import dtype_of
from ivgr.data.stream import BatchComposition
from ivgr.launch.config import compose_words
from ivgr.launch.lightning_cli import CLI, run_lightning
from ivgr.models.pretrained import Pretrained
from ivgr.models.registry import find_family
from ivgr.models.tree_attention import use_tree_attention
from ivgr.rollout.engine_timeout import TimeoutEngine
from ivgr.rollout.transformers_engine import TransformersEngine
from ivgr.tools.plan.model_shape import find_config
from ivgr.tools.random_checkpoint import build_skeleton
from ivgr.toy.tokenizer import CHAT_TEMPLATE, build_tokenizer, special_ids
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
    """module: with a `Skeleton` in place of its policy's source. mix: queries of an iteration on one rank, of
    a cold start demonstrations. streams: of paired queries."""

    module: PolicyModule
    strategy: Any
    cold_start: bool
    ranks: int
    mix: BatchComposition
    streams: tuple[str, ...]


class Skeleton:
    """Loads what `Pretrained` would, without bytes: the model's every shape in main memory that nothing
    fills, the family's own processor around the tiny world's tokenizer. `layers` cuts the language model and
    the vision tower."""

    def __init__(self, source: Pretrained, layers: int | None) -> None:
        self.source = source
        self.layers = layers

    def load(self) -> tuple[PreTrainedModel, ProcessorMixin]:
        """Has the signature of `PolicySource`."""
        tokenizer = build_tokenizer()
        config = find_config(self.source.path)
        _name_special_tokens(config, tokenizer)
        if self.layers is not None:
            cut_layers(config, self.layers)
        model = build_skeleton(config, dtype_of(self.source.dtype)).to_empty(device="cpu")
        model.tie_weights()
        model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
        family = find_family(config.model_type)
        processor = family.build_processor(tokenizer, CHAT_TEMPLATE)
        use_tree_attention(model)
        self.source._limit_pixels(processor)
        return model.eval(), processor


def cut_layers(config: PreTrainedConfig, layers: int) -> None:
    """Leaves `layers` layers of the language model and of the vision tower, and of the settings that name
    layers those that are left."""
    text, vision = config.text_config, config.vision_config
    text.num_hidden_layers = min(layers, text.num_hidden_layers)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    vision.depth = min(layers, vision.depth)
    if getattr(vision, "deepstack_visual_indexes", None):
        count = min(len(vision.deepstack_visual_indexes), vision.depth, text.num_hidden_layers)
        vision.deepstack_visual_indexes = list(range(count))
    if getattr(vision, "fullatt_block_indexes", None):
        vision.fullatt_block_indexes = [vision.depth - 1]


def read_recipe(path: Path, ranks: int | None, layers: int | None) -> Recipe:
    """The recipe of a config file; UserError as the parser's, and for what cannot be rehearsed."""
    if not path.is_file():
        raise UserError(f"--config: no file at {path}")
    words = compose_words(["fit", "--config", str(path)])
    cli = run_lightning([*words, "--model.judge", "ivgr.judge.RulesAlone"], Instantiated)
    module, trainer, data = cli.made["fit"].model, cli.trainer_settings, cli.data_settings["init_args"]
    cold_start = module.kind == "sft"
    ranks = ranks or _count_ranks(trainer)
    _prepare(module, layers)
    if cold_start:
        mix, streams = BatchComposition(0, max(data["batch"] // ranks, 1)), ()
    else:
        streams = tuple(data["streams"])
        mix = _mix(data, streams, ranks)
    return Recipe(module, cli.made["fit"].trainer.strategy, cold_start, ranks, mix, streams)


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


def _prepare(module: PolicyModule, layers: int | None) -> None:
    """Puts the skeleton in place of the policy; UserError for a policy or engine that cannot be rehearsed."""
    if not isinstance(module.source, Pretrained):
        raise UserError(
            f"rehearse: model.policy is {type(module.source).__name__}, which a rehearsal cannot load; "
            "name a path by ivgr.Pretrained"
        )
    engine: Any = module.engine
    module.engine = engine = engine.engine if isinstance(engine, TimeoutEngine) else engine
    if not isinstance(engine, TransformersEngine):
        raise UserError(
            f"rehearse: model.engine is {type(engine).__name__}, which needs a real GPU; rehearse with "
            "ivgr.TransformersEngine"
        )
    module.source = Skeleton(module.source, layers)


def _name_special_tokens(config: PreTrainedConfig, tokenizer: Any) -> None:
    """Gives `config` the numbers of the tokenizer's special tokens."""
    fields = special_ids(tokenizer)
    for name, token in fields.pop("text_config").items():
        setattr(config.text_config, name, token)
    for name, token in fields.items():
        setattr(config, name, token)


def _count_ranks(trainer: dict[str, Any]) -> int:
    devices = trainer["devices"]
    each = len(devices) if isinstance(devices, list) else devices
    return trainer["num_nodes"] * (int(each) if str(each).isdecimal() else 1)


def _mix(data: dict[str, Any], streams: tuple[str, ...], ranks: int) -> BatchComposition:
    if data["prompts"] % ranks:
        raise UserError(f"data.prompts is {data['prompts']}, must be a multiple of the {ranks} GPUs")
    return BatchComposition.of(data["prompts"] // ranks, data["paired_ratio"], len(streams))
