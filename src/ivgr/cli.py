"""The command line: `ivgr fit|validate` (a LightningCLI) and the small tools beside it.

Every error that a user can mend leaves as one line on stderr with exit code 2.
"""

import errno
import logging
import sys
import warnings
from collections.abc import Iterator

from jsonargparse import auto_cli
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from transformers.utils.logging import disable_progress_bar

from ivgr.compose import compose_words
from ivgr.errors import UserError, say
from ivgr.fit import run_lightning
from ivgr.help import HELP
from ivgr.parser import Parser, SettingError, ToolParser
from ivgr.plan.command import plan
from ivgr.printable import printable
from ivgr.tools import TOOLS
from ivgr.watch.preempt import Preempted

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def mendable_line(error: BaseException) -> str | None:
    """What the user can mend: the UserError that `error` is or that caused it (jsonargparse wraps what
    a constructor raises), what Lightning refuses, or a file that the system refuses. None for
    anything else, which is a fault of the program."""
    chain = list(causes(error))
    for found in chain:
        if isinstance(found, UserError):
            return last_line_of(found)
    for found in chain:
        if isinstance(found, MisconfigurationException):
            return f"trainer: {say(found)}; mend trainer.* in the config"
        if isinstance(found, OSError) and found.filename is not None:
            return f"{found.filename}: {found.strerror}; mend it or give another path"
        if isinstance(found, OSError) and found.errno in FULL:
            return f"{found.strerror}; make room, then run the same command again"
        if isinstance(found, RuntimeError) and str(found).startswith("DataLoader worker (pid"):
            return f"data.workers: {say(found).rstrip('.')}; go on with --ckpt_path auto"
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error`, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def last_line_of(error: Exception) -> str:
    """The message with its notes, also where a reader process has put its traceback before it."""
    message = str(error).strip().split("\n")[-1].removeprefix("ivgr.errors.UserError: ")
    return "; ".join([message, *getattr(error, "__notes__", ())])


def main(args: list[str] | None = None) -> None:
    """Entry point of the `ivgr` command."""
    words = sys.argv[1:] if args is None else args
    Parser.latest = None
    hush()
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(HELP)
        elif words[0] in TOOLS:
            run_tool(words[0], words[1:])
        else:
            run_lightning(compose_words(words))
    except Preempted as stopped:
        print(f"ivgr: {printable(last_line_of(stopped))}", file=sys.stderr)
        raise SystemExit(stopped.code) from None
    except Exception as error:
        line = mendable_line(error)
        if line is None:
            raise
        print(f"ivgr: error: {printable(line)}", file=sys.stderr)
        raise SystemExit(2) from None


def run_tool(name: str, words: list[str]) -> None:
    """`plan` has a --config of its own, which auto_cli would take for a file of options."""
    try:
        _run_tool(name, words)
    except SettingError as error:
        raise UserError(f"{name}: {'--' * bool(error.key)}{error}") from error


def _run_tool(name: str, words: list[str]) -> None:
    if TOOLS[name] is not plan:
        auto_cli(TOOLS[name], args=words, prog=f"ivgr {name}", parser_class=ToolParser, description=None)
        return
    parser = Parser(prog=f"ivgr {name}", description=None)
    parser.add_function_arguments(plan)
    plan(**parser.instantiate(parser.parse_args(words)).as_dict())


def hush() -> None:
    """Silences notices that are no news here: the loop steps optimizer and bar itself."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    disable_progress_bar()
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message="`gradient_checkpointing_enable` is deprecated")
