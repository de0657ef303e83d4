"""The command line: `ivgr fit|validate` (a LightningCLI) and the small tools beside it.

Every error that a user can mend leaves as one line on stderr with exit code 2.
"""

import logging
import sys
import warnings
from pathlib import Path

import lightning as L
from jsonargparse import auto_cli
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from transformers.utils.logging import disable_progress_bar

from ivgr.errors import UserError
from ivgr.tools import TOOLS
from ivgr.watch.record import RunRecord
from ivgr.watch.rescue import Rescue

HELP = """\
ivgr: train vision-language models to reason in plain text with the localization skill of
explicit boxes (iVGR, arXiv 2605.31096).

  ivgr fit --config FILE        train; try configs/tiny.yaml, which needs no GPU and no data
  ivgr fit --config FILE --ckpt_path last
                                continue a run that was stopped
  ivgr validate --config FILE   held-out figures of a policy, both streams, greedy
  ivgr synth DIR --split train --count N
                                draw shards of the tiny world
  ivgr pack SRC DST             turn parquet, JSON, JSONL, COCO or CSV rows and their images into shards
  ivgr inspect SHARDS           count them, and draw their boxes and questions on a contact sheet
  ivgr archive show CKPT        print the rollout archive of a checkpoint
  ivgr distill RUN SHARDS DST   cold-start shards from a run's good grounded rollouts: as they are, and
                                rewritten without boxes
  ivgr filter SHARDS DST        keep the samples that a policy answers neither always nor never
  ivgr evaluate --benchmark NAME --data DIR --model MODEL --mode text grounded
                                score models on V*, HRBench, POPE, … from files you have, with intervals
  ivgr compare RUN_A RUN_B      is the difference real? paired, with McNemar's test
  ivgr analyse OUT/MODEL        what the modes differ in, cost, and accuracy by IoU of the boxes
  ivgr bench update             time a phase with the prefix shared and without; also rollout, step
  ivgr bench kernels            time log-prob and KL against this machine's copy and GEMM speed
  ivgr bench data               time decoding and processing beside plain PIL and the HF processor
  ivgr bench evaluate           time answering rows of a benchmark beside stock `generate`

Any setting of the config can be overridden on the command line, for example
  ivgr fit --config configs/tiny.yaml --model.optimizer.lr 5e-5 --seed_everything 1
and `--print_config` prints the outcome. `ivgr COMMAND --help` lists every setting.
"""


class Parser(LightningArgumentParser):
    """Says in one line what is wrong with a config: of the messages of nested parsers the
    innermost, which knows the key. A tool's yes-or-no option needs no value: `--long`."""

    messages: list[str] = []

    def add_argument(self, *args, **kwargs):
        if kwargs.get("type") is bool:
            kwargs |= {"nargs": "?", "const": True}
        return super().add_argument(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> None:
        self.messages.append(" ".join(str(message).split()))
        raise UserError(self.messages[0][:300]) from ex


class ToolParser(Parser):
    """Of a tool: an option that is a list of strings takes them one behind the other."""

    def add_argument(self, *args, **kwargs):
        if getattr(kwargs.get("action"), "_typehint", None) == list[str]:
            del kwargs["action"]
            args, kwargs = args[:1], kwargs | {"nargs": "+", "type": str}
        return super().add_argument(*args, **kwargs)


class CLI(LightningCLI):
    """Settings that every run shares: what it writes lies under trainer.default_root_dir."""

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

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--checkpoint_every", type=int, default=25, help="Optimizer updates between two checkpoints."
        )

    def instantiate_trainer(self, **kwargs) -> L.Trainer:
        config = self.config[self.subcommand]
        root = Path(config.trainer.default_root_dir or "runs/default")
        checkpoint = ModelCheckpoint(
            dirpath=root / "checkpoints",
            every_n_train_steps=config.checkpoint_every,
            save_last=True,
            save_top_k=0,
            enable_version_counter=False,
        )
        kwargs["logger"] = TensorBoardLogger(root, name="", version="")
        kwargs["default_root_dir"] = str(root)
        self.trainer_defaults["callbacks"] = [
            checkpoint,
            Rescue(root / "checkpoints"),
            RunRecord(self.parser.dump(self.config, skip_none=False)),
        ]
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        self._find_last()

    def before_validate(self) -> None:
        self._find_last()

    def _find_last(self) -> None:
        """`--ckpt_path last` is the run's own last checkpoint, and there must be one."""
        config = self.config_init[self.subcommand]
        last = Path(self.trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        if config.ckpt_path == "last":
            config.ckpt_path = last
        if config.ckpt_path and not Path(config.ckpt_path).exists():
            raise UserError(f"--ckpt_path: no checkpoint at {config.ckpt_path}; leave it out to start afresh")


def user_error_behind(error: BaseException | None) -> UserError | None:
    """The UserError that `error` is or that caused it (jsonargparse wraps what a
    constructor raises)."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def last_line_of(error: UserError) -> str:
    """The message with its notes, also where a reader process has put its traceback before it."""
    message = str(error).strip().splitlines()[-1].removeprefix("ivgr.errors.UserError: ")
    return "; ".join([message, *getattr(error, "__notes__", ())])


def main(args: list[str] | None = None) -> None:
    """Entry point of the `ivgr` command."""
    words = sys.argv[1:] if args is None else args
    Parser.messages.clear()
    hush()
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(HELP)
        elif words[0] in TOOLS:
            tool, prog = TOOLS[words[0]], f"ivgr {words[0]}"
            auto_cli(tool, args=words[1:], prog=prog, parser_class=ToolParser, description=None)
        else:
            run_lightning(args)
    except Exception as error:
        mendable = user_error_behind(error)
        if mendable is None:
            raise
        print(f"ivgr: error: {last_line_of(mendable)}", file=sys.stderr)
        raise SystemExit(2) from None


def run_lightning(args: list[str] | None) -> None:
    CLI(
        model_class=L.LightningModule,
        datamodule_class=L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_class=Parser,
        parser_kwargs={"prog": "ivgr"},
        auto_configure_optimizers=False,
        save_config_callback=None,
        seed_everything_default=0,
        args=args,
        trainer_defaults={
            "accelerator": "auto",
            "max_epochs": 1,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    )


def hush() -> None:
    """Silences notices that are no news here: the loop steps optimizer and bar itself, and
    the rules before the judge run without a time limit."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    disable_progress_bar()
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message="`gradient_checkpointing_enable` is deprecated")
