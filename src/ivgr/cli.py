"""The command line: `ivgr fit|validate` (a LightningCLI) and the small tools beside it.

Every error that a user can mend leaves as one line on stderr with exit code 2.
"""

import logging
import sys
import warnings

from jsonargparse import auto_cli
from transformers.utils.logging import disable_progress_bar

from ivgr.compose import compose_words
from ivgr.errors import UserError
from ivgr.fit import Parser, run_lightning
from ivgr.help import HELP
from ivgr.plan.command import plan
from ivgr.printable import printable
from ivgr.tools import TOOLS
from ivgr.watch.preempt import Preempted


class ToolParser(Parser):
    """Of a tool: an option that is a list of strings takes them one behind the other."""

    def add_argument(self, *args, **kwargs):
        if getattr(kwargs.get("action"), "_typehint", None) == list[str]:
            del kwargs["action"]
            args, kwargs = args[:1], kwargs | {"nargs": "+", "type": str}
        return super().add_argument(*args, **kwargs)


def user_error_behind(error: BaseException | None) -> UserError | None:
    """The UserError that `error` is or that caused it (jsonargparse wraps what a
    constructor raises)."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def last_line_of(error: Exception) -> str:
    """The message with its notes, also where a reader process has put its traceback before it."""
    message = str(error).strip().split("\n")[-1].removeprefix("ivgr.errors.UserError: ")
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
            run_tool(words[0], words[1:])
        else:
            run_lightning(compose_words(words))
    except Preempted as stopped:
        print(f"ivgr: {printable(last_line_of(stopped))}", file=sys.stderr)
        raise SystemExit(stopped.code) from None
    except Exception as error:
        mendable = user_error_behind(error)
        if mendable is None:
            raise
        print(f"ivgr: error: {printable(last_line_of(mendable))}", file=sys.stderr)
        raise SystemExit(2) from None


def run_tool(name: str, words: list[str]) -> None:
    """`plan` has a --config of its own, which auto_cli would take for a file of options."""
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
