"""The command line: `ivgr fit|validate` (a LightningCLI) and the small tools beside it.

Every error that a user can mend leaves as one line on stderr with exit code 2.
"""

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from difflib import get_close_matches
from importlib import import_module

from jsonargparse import auto_cli

from ivgr import __version__
from ivgr.compose import compose_words
from ivgr.errors import Preempted, UserError, say
from ivgr.help import FIT, HELP
from ivgr.parser import OneLine, Parser, SettingError, ToolParser
from ivgr.printable import printable
from ivgr.tools import TOOLS, load_tool

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
        if type(found).__name__ == "MisconfigurationException":  # Lightning's, which few commands load
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
    OneLine.latest = None
    hush()
    try:
        run(words)
    except Preempted as stopped:
        print(f"ivgr: {printable(last_line_of(stopped))}", file=sys.stderr)
        raise SystemExit(stopped.code) from None
    except Exception as error:
        line = mendable_line(error)
        if line is None:
            raise
        print(f"ivgr: error: {printable(line)}", file=sys.stderr)
        raise SystemExit(2) from None


def run(words: list[str]) -> None:
    """The command that `words` begin with."""
    name, rest = (words or ["help"])[0], words[1:]
    if name in ("-h", "--help", "help"):
        print(HELP)
    elif name == "--version":
        print(f"ivgr {__version__}")
    elif name in ("fit", "validate") and rest[:1] in (["-h"], ["--help"]):
        show_settings(name, rest[1:])
    elif name in TOOLS:
        run_tool(name, rest)
    elif name in ("fit", "validate") or name.startswith("-"):
        run_fit(words)
    else:
        near = get_close_matches(name, [*TOOLS, "fit", "validate"], 1)
        raise UserError(
            f"{name!r} is no command; {f'did you mean {near[0]!r}?' if near else 'see'} ivgr --help"
        )


def show_settings(command: str, of: list[str]) -> None:
    """Of `ivgr fit` or `ivgr validate` in groups, or every setting of the class whose path is given."""
    if not of:
        print(FIT.format(command=command))
        return
    module, _, name = of[0].rpartition(".")
    try:
        owner = getattr(import_module(module), name)
        parser = Parser(prog=f"ivgr {command}", usage=f"every setting of {of[0]}", description=None)
        parser.add_class_arguments(owner)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{command} --help: {of[0]!r} is no class that a config can name ({say(error)})"
        ) from error
    parser.print_help()


def run_fit(words: list[str]) -> None:
    from ivgr.fit import run_lightning  # takes seconds to load, which the other commands need not wait for

    run_lightning(compose_words(words))


def run_tool(name: str, words: list[str]) -> None:
    """`plan` has a --config of its own, which auto_cli would take for a file of options."""
    try:
        _run_tool(name, words)
    except SettingError as error:
        raise UserError(f"{name}: {'--' * bool(error.key)}{error}") from error


def _run_tool(name: str, words: list[str]) -> None:
    tool = load_tool(name)
    if name != "plan":
        auto_cli(tool, args=words, prog=f"ivgr {name}", parser_class=ToolParser, description=None)
        return
    parser = Parser(prog=f"ivgr {name}", description=None)
    parser.add_function_arguments(tool)
    tool(**parser.instantiate(parser.parse_args(words)).as_dict())


def hush() -> None:
    """Silences notices that are no news here; transformers, which few commands load, reads the variable
    when it is loaded."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if loaded := sys.modules.get("transformers.utils.logging"):
        loaded.disable_progress_bar()
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message="`gradient_checkpointing_enable` is deprecated")
