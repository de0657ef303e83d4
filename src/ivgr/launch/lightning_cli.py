"""`ivgr fit|validate`: a LightningCLI, its parser, and the settings that every run shares."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace, set_parsing_settings
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ivgr.callbacks.checkpoints import LAST, Checkpoints
from ivgr.callbacks.ending import Ending
from ivgr.callbacks.hparams import Hyperparameters
from ivgr.callbacks.metrics_logger import ColdStartMetrics, MetricsLogger
from ivgr.callbacks.preemption import Preemption
from ivgr.callbacks.progress import IterationBar
from ivgr.callbacks.rollout_log import RolloutRecord
from ivgr.callbacks.run_metadata import RunRecord
from ivgr.callbacks.save_on_error import Rescue
from ivgr.callbacks.subset_validation import SubsetValidation
from ivgr.callbacks.tensorboard import Logger
from ivgr.callbacks.validation_summary import ColdStartSummary, ValidationSummary
from ivgr.core.checkpoint_file import find_checkpoint, read_checkpoint
from ivgr.core.errors import UserError, refusals
from ivgr.core.lightning_private import IgnoresCheckpointSettings, RunsNothing
from ivgr.core.settings import NonNegativeInt, Outage, PositiveInt, Seed
from ivgr.core.sharding import is_sharded
from ivgr.distributed.peers import Peers
from ivgr.launch.config import compose_words
from ivgr.launch.parser import OneLine
from ivgr.launch.trainer_settings import Trainer
from ivgr.trainer import fsdp_strategy  # noqa: F401  registers the strategy "fsdp2"


class FitParser(OneLine, LightningArgumentParser):
    """The parser of `ivgr fit` and `ivgr validate`."""


class CLI(IgnoresCheckpointSettings, LightningCLI):
    """Settings that every run shares: what it writes lies under trainer.default_root_dir."""

    subcommand: str  # of `ivgr`, there is always one

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        skipped = {
            "model",
            "train_dataloaders",
            "val_dataloaders",
            "dataloaders",
            "datamodule",
            "weights_only",
        }
        return {"fit": skipped, "validate": skipped}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--seed_everything",
            type=bool | Seed,
            default=self.seed_everything_default,
            help="Seed of everything that is drawn at random; true takes that of PL_GLOBAL_SEED.",
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--checkpoint_every",
            type=PositiveInt,
            default=25,
            help="Optimizer updates between two checkpoints.",
        )
        parser.add_argument(
            "--checkpoint_keep",
            type=PositiveInt,
            default=1,
            help="Latest checkpoints to keep, beside the best.",
        )
        parser.add_argument(
            "--checkpoint_best",
            default="val/textual/accuracy",
            help="Validation figure whose highest value makes best.ckpt (see trainer.val_check_interval).",
        )
        parser.add_argument(
            "--record_every",
            type=PositiveInt,
            default=1,
            help="Rollouts are written of every so many-th iteration, and of the last.",
        )
        parser.add_argument(
            "--held_out_times",
            type=NonNegativeInt,
            default=5,
            help="Times in a run, beside the start, that the first held-out queries are answered greedily; "
            "0 for never. Not done where trainer.val_check_interval has whole validations.",
        )
        parser.add_argument(
            "--held_out_queries",
            type=PositiveInt,
            default=16,
            help="How many queries of data.val that are.",
        )
        parser.add_argument(
            "--rank_timeout",
            type=Outage,
            default=30,
            help="Seconds for which the machine of another rank may be out of reach before all ranks end.",
        )

    def instantiate_trainer(self, **kwargs) -> L.Trainer:
        config = self.config[self.subcommand]
        strategy = config.trainer.strategy
        if isinstance(strategy, str) and strategy not in ("auto", "fsdp2") and not strategy.startswith("ddp"):
            raise UserError(f"trainer.strategy is {strategy}, must be ddp or fsdp2")
        root = Path(config.trainer.default_root_dir or "runs/default")
        file = next((place for place in (root, *root.parents) if place.exists() and not place.is_dir()), None)
        if file is not None:
            raise UserError(f"trainer.default_root_dir is {root}, but {file} is a file; name another folder")
        every, keep = config.checkpoint_every, config.checkpoint_keep
        checkpoints = Checkpoints(root / "checkpoints", every, keep, config.checkpoint_best)
        named = self.config_init[self.subcommand].trainer.logger or []
        kwargs["logger"] = [
            Logger(root, name="", version=""),
            *(named if isinstance(named, list) else [named]),
        ]
        kwargs["default_root_dir"] = str(root)
        kwargs["plugins"] = _add_reader(self.config_init[self.subcommand].trainer.plugins)
        self.trainer_defaults["callbacks"] = self._callbacks(checkpoints, config)
        with refusals("trainer", "mend trainer.* in the config", MisconfigurationException):
            return super().instantiate_trainer(**kwargs)

    def _callbacks(self, checkpoints: Checkpoints, config: Namespace) -> list[L.Callback]:
        """All of a run, in the order of their hooks; a config's own come before them."""
        resolved = self.parser.dump(self.config, skip_none=False)
        times = config.held_out_times if config.trainer.val_check_interval is None else 0
        subset = SubsetValidation(times, config.held_out_queries)
        own: dict[str, list[L.Callback]] = {
            "rl": [
                IterationBar(),
                subset,
                MetricsLogger(),
                RolloutRecord(config.record_every),
                ValidationSummary(),
            ],
            "sft": [ColdStartMetrics(), ColdStartSummary()],
        }
        return [
            Ending(),
            checkpoints,
            Preemption(),
            Rescue(checkpoints),
            Peers(config.rank_timeout),
            RunRecord(resolved),
            Hyperparameters(resolved),
            *own.get(getattr(self.model, "kind", ""), []),
        ]

    def before_fit(self) -> None:
        self._find_last()

    def before_validate(self) -> None:
        self._find_last()

    def _find_last(self) -> None:
        """`--ckpt_path last` is the run's own last checkpoint, and there must be one; so is `best`;
        `auto` is the last, if there is one."""
        config = self.config_init[self.subcommand]
        folder = Path(self.trainer.default_root_dir) / "checkpoints"
        if config.ckpt_path == "auto":
            config.ckpt_path = folder / LAST if (folder / LAST).exists() else None
        elif config.ckpt_path in ("last", "best"):
            config.ckpt_path = folder / f"{config.ckpt_path}.ckpt"
        sharded = is_sharded(self.trainer.strategy)
        if config.ckpt_path:
            find_checkpoint(Path(config.ckpt_path), sharded)


class CheckpointFile(TorchCheckpointIO):
    """Reads a checkpoint that is one file by our own checks; writes as Lightning does."""

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(path, whole=True)


def _add_reader(plugins: object) -> list:
    """`trainer.plugins`, which may be a list, one alone or none, with what reads checkpoints."""
    named = plugins if isinstance(plugins, list) else [plugins] if plugins else []
    return named if any(isinstance(one, CheckpointIO) for one in named) else [*named, CheckpointFile()]


class ParseOnly(RunsNothing, CLI):
    """Reads a config and stops: nothing is instantiated."""

    def instantiate_classes(self) -> None:
        pass


def parse_fit(config: Path) -> dict[str, Any]:
    """Every setting of `ivgr fit --config CONFIG`, as plain mappings."""
    if not config.is_file():
        raise UserError(f"--config: no file at {config}")
    parsed = run_lightning(compose_words(["fit", "--config", str(config)]), ParseOnly)
    return parsed.config["fit"].as_dict()


def run_lightning(args: list[str], cli: type[CLI] = CLI) -> CLI:
    """Lightning's notices are no news here: the loop steps optimizer and bar itself. Nor is a value that
    is a URL, such as that of a shard, a configuration, as which Lightning has jsonargparse read it."""
    set_parsing_settings(config_read_mode_fsspec_enabled=False)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return cli(
        model_class=L.LightningModule,
        datamodule_class=L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_class=FitParser,
        parser_kwargs={"prog": "ivgr"},
        auto_configure_optimizers=False,
        save_config_callback=None,
        seed_everything_default=0,
        args=args,
        trainer_class=Trainer,
        trainer_defaults={"enable_progress_bar": False, "enable_model_summary": False},
    )
