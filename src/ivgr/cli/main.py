"""The command line: `ivgr fit|validate` (a LightningCLI) and the small tools beside it.

Every error that a user can mend leaves as one line on stderr with exit code 2.
"""

import sys
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from jsonargparse import auto_cli

from ivgr import __version__
from ivgr.cli.commands import TOOLS, load_tool
from ivgr.cli.help import FIT, HELP
from ivgr.core.errors import UserError, say
from ivgr.launch.config import compose_words
from ivgr.launch.error_lines import error_lines
from ivgr.launch.parser import Parser, SettingError, ToolParser


def main(args: list[str] | None = None) -> None:
    """Entry point of the `ivgr` command."""
    words = sys.argv[1:] if args is None else args
    with error_lines():
        run(words)


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
    """Prints the settings of `ivgr fit` or `ivgr validate` in groups, or every setting of the class whose
    path is given."""
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
    from ivgr.launch.lightning_cli import (
        run_lightning,  # takes seconds to load, which the other commands need not wait for
    )

    run_lightning(compose_words(words))


def run_tool(name: str, words: list[str]) -> None:
    """`plan` and `rehearse` have a --config of their own, which auto_cli would take for a file of options."""
    try:
        _run_tool(name, words)
    except SettingError as error:
        raise UserError(f"{name}: {'--' * bool(error.key)}{error}") from error


def _run_tool(name: str, words: list[str]) -> None:
    tool: Any = load_tool(name)
    if name not in ("plan", "rehearse"):
        auto_cli(tool, args=words, prog=f"ivgr {name}", parser_class=ToolParser, description=None)
        return
    parser = Parser(prog=f"ivgr {name}", description=None)
    parser.add_function_arguments(tool)
    tool(**parser.instantiate(parser.parse_args(words)).as_dict())
