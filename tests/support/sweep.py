"""Every setting of every command, found by asking the parsers, and the values that a slip would give it.

A `Setting` is one place for a value: a command that is valid without it, the keys that lead to it, and its
type. The settings of `ivgr fit` and `ivgr validate` include those of every class of the package that a
config can name where it stands.
"""

import builtins
import contextlib
import importlib
import inspect
import io
import json
import math
import os
import pkgutil
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field, is_dataclass
from functools import cache, wraps
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin
from unittest import mock

import yaml
from jsonargparse import capture_parser
from jsonargparse._required import iter_required_keys
from jsonargparse._typehints import ActionTypeHint, implements_protocol

import ivgr
from ivgr.cli import main as cli
from ivgr.cli.commands import load_tool
from ivgr.core.settings import Refused
from ivgr.launch.config import read_config
from ivgr.launch.parser import Parser

CONFIGS = Path(__file__).parents[2] / "configs"
NUMBERS = {"negative": -1, "zero": 0, "NaN": math.nan, "huge": 1e30, "word": "many"}
PATHS = ("missing", "folder", "another kind", "unreadable", "empty")
CLASSES = {"no such class": "ivgr.nowhere.Nothing", "another class": "ivgr.core.printable.printable"}
# The system's calls that ask for a file.
LOOKS = ("open", "stat", "lstat", "listdir", "scandir")
# What parsers have beside settings.
STRUCTURE = (
    "_HelpAction", "ActionConfigFile", "_ActionPrintConfig", "_ActionConfigLoad", "_ActionHelpClassPath",
)  # fmt: skip


class Accepted(BaseException):
    """Raised where the work of a command would begin: its settings were taken."""


@dataclass(frozen=True)
class Setting:
    """words and settings are a command that is valid; keys lead to the place in its settings."""

    words: tuple[str, ...]
    settings: dict
    keys: tuple[str | int, ...]
    hint: Any

    @property
    def name(self) -> str:
        """As a user writes it."""
        return ".".join(str(key) for key in self.keys if key != "init_args" and not isinstance(key, int))

    def __str__(self) -> str:
        places = [self.settings.get("model"), self.settings.get("data")]
        classes = [place["class_path"].split(".")[-1] for place in places if isinstance(place, dict)]
        return " ".join([*self.words, *classes, self.name])

    def given(self, value: Any) -> dict:
        """The command's settings with `value` in this place."""
        return _with(self.settings, self.keys, value)

    def held(self) -> dict | None:
        """The class and its settings that stand in this place."""
        place = self.settings
        for key in self.keys:
            if not isinstance(place, dict) or key not in place:
                return None
            place = place[key]
        return place if isinstance(place, dict) and "class_path" in place else None


def _with(place: Any, keys: Sequence[str | int], value: Any) -> Any:
    """`place` with `value` where the keys lead; a list there is its one element."""
    if not keys:
        return deepcopy(value)
    if isinstance(keys[0], int):
        inner = place[0] if isinstance(place, list) and place else None
        return [_with(inner, keys[1:], value)]
    place = place if isinstance(place, dict) else {}
    return deepcopy(place) | {keys[0]: _with(place.get(keys[0]), keys[1:], value)}


@dataclass
class Found:
    """Settings by what they take; classes are places for one; skipped are those left out, and why."""

    parsers: list[str] = field(default_factory=list)
    numbers: list[Setting] = field(default_factory=list)
    texts: list[Setting] = field(default_factory=list)
    classes: list[Setting] = field(default_factory=list)
    unbounded: list[str] = field(default_factory=list)
    named: set[type] = field(default_factory=set)
    skipped: dict[str, str] = field(default_factory=dict)


def members(hint: Any) -> Iterator[Any]:
    """What an annotation allows, alternatives one by one, None left out."""
    if get_origin(hint) in (Union, UnionType):
        for part in get_args(hint):
            yield from members(part)
    elif hint is not type(None):
        yield hint


def element(hint: Any) -> Any | None:
    """Of what a list consists, None for what is no list."""
    return get_args(hint)[0] if get_origin(hint) in (list, Sequence, tuple) and get_args(hint) else None


@cache
def package_classes() -> tuple[type, ...]:
    """Every public class that a module of the package defines."""
    found = []
    for module in pkgutil.walk_packages(ivgr.__path__, "ivgr."):
        if module.name.endswith("__main__"):
            continue
        content = vars(importlib.import_module(module.name))
        found += [c for c in content.values() if inspect.isclass(c) and c.__module__ == module.name]
    return tuple(
        c
        for c in dict.fromkeys(found)
        if not c.__name__.startswith("_") and not hasattr(c, "lazy_get_init_args")
    )


def fitting(hint: type) -> list[type]:
    """The classes of the package that a config can name where `hint` stands."""
    protocol = getattr(hint, "_is_protocol", False)
    return [
        one
        for one in package_classes()
        if not inspect.isabstract(one) and not getattr(one, "_is_protocol", False)
        if (implements_protocol(one, hint) if protocol else issubclass(one, hint))
    ]


def is_slot(hint: Any) -> bool:
    """Whether a class stands here, with settings of its own."""
    return inspect.isclass(hint) and bool(ActionTypeHint.is_subclass_typehint(hint, False))


def arguments(target: type) -> Iterator[tuple[str, Any, bool]]:
    """(dotted name, annotation, required) of the settings of a class."""
    parser = Parser(exit_on_error=False)
    parser.add_class_arguments(target, None)
    yield from actions_of(parser)


def actions_of(parser: Parser) -> Iterator[tuple[str, Any, bool]]:
    needed = set(iter_required_keys(parser))
    for action in parser._actions:
        kind = type(action).__name__
        if kind in STRUCTURE:
            continue
        hint = getattr(action, "_typehint", None) or action.type or str
        required = action.dest in needed
        yield action.dest, list[hint] if action.nargs == "+" else hint, required


class Sweep:
    """Finds settings; `valid` gives values of those that a command cannot do without, by name."""

    def __init__(self, valid: dict[str, Any], internal: dict[str, str]) -> None:
        self.valid, self.internal, self.found = valid, internal, Found()
        self._path: tuple[type, ...] = ()

    def walk(self) -> Found:
        for name in cli.TOOLS:
            parser = capture_parser(lambda name=name: cli.main([name]))
            branches = getattr(parser, "_subcommands_action", None)
            for sub, own in branches._name_parser_map.items() if branches else (("", parser),):
                self._tool((name, sub) if sub else (name,), own)
        for command in ("fit", "validate"):
            self._lightning(command)
        return self.found

    def _tool(self, words: tuple[str, ...], parser: Parser) -> None:
        self.found.parsers.append(" ".join(words))
        settings = list(actions_of(parser))
        base = {}
        for name, _, required in settings:
            if required or f"{words[0]}.{name}" in self.valid:
                base[name] = self._valid(words[0], name)
        for name, hint, _ in settings:
            self._place(Setting(words, base, tuple(name.split(".")), hint))

    def _lightning(self, command: str) -> None:
        self.found.parsers.append(command)
        parser = capture_parser(lambda: cli.main([command]))._subcommands_action._name_parser_map[command]
        base = read_config(CONFIGS / "tiny.yaml") | {"trainer": {"default_root_dir": self.valid["root"]}}
        base["data"]["init_args"] |= {"train_count": 12, "val_count": 8}
        for name, hint, _ in actions_of(parser):
            self._place(Setting((command,), base, tuple(name.split(".")), hint))

    def _valid(self, owner: str, name: str) -> Any:
        for key in (f"{owner}.{name}", name):
            if key in self.valid:
                return self.valid[key]
        raise LookupError(f"{owner} needs {name}, of which the sweep knows no valid value")

    def _place(self, setting: Setting) -> None:
        parts = list(members(setting.hint))
        if any(is_number(part) for part in parts):
            self.found.numbers.append(setting)
            if any(part in (int, float) for part in parts):
                self.found.unbounded.append(str(setting))
        if any(inspect.isclass(part) and issubclass(part, str | Path) for part in parts):
            self.found.texts.append(setting)
        slots = [part for part in parts if is_slot(part)]
        if slots:
            self.found.classes.append(setting)
        for part in slots:
            for one in fitting(part):
                self._class(setting, one)
        for part in parts:
            if is_dataclass(part) and not is_slot(part):
                self._record(setting, part)
        for part in parts:
            inner = element(part)
            if inner not in (None, Any, str) and not any(inner in parts for inner in members(inner)):
                self._place(Setting(setting.words, setting.settings, (*setting.keys, 0), inner))
            elif inner is str and str not in parts:
                self.found.texts.append(Setting(setting.words, setting.settings, (*setting.keys, 0), str))

    def _record(self, setting: Setting, one: type) -> None:
        """A dataclass that is one of several alternatives, or of a list."""
        own = list(arguments(one))
        base = setting.given({name: self._valid(one.__name__, name) for name, _, needed in own if needed})
        for name, hint, _ in own:
            self._place(Setting(setting.words, base, (*setting.keys, *name.split(".")), hint))

    def _class(self, setting: Setting, one: type) -> None:
        path = f"{one.__module__}.{one.__qualname__}"
        if path in self.internal:
            self.found.skipped[path] = self.internal[path]
            return
        if one in self._path:
            return
        self.found.named.add(one)
        own = list(arguments(one))
        given = {name: self._valid(one.__name__, name) for name, _, required in own if required}
        if (held := setting.held()) and held["class_path"].split(".")[-1] == one.__name__:
            given |= held.get("init_args", {})
        base = setting.given({"class_path": path, "init_args": given}) | self.valid.get(
            f"with {one.__name__}", {}
        )
        above, self._path = self._path, (*self._path, one)
        for name, hint, _ in own:
            self._place(Setting(setting.words, base, (*setting.keys, "init_args", *name.split(".")), hint))
        self._path = above


def is_number(hint: Any) -> bool:
    return hint in (int, float) or (
        inspect.isclass(hint) and hasattr(hint, "rule") and issubclass(hint, int | float)
    )


def allows(hint: Any, value: Any) -> bool:
    """Whether the type of a number, or what stands beside it, takes `value`."""
    for part in members(hint):
        if get_origin(part) is Literal and value in get_args(part):
            return True
        if hasattr(part, "rule"):
            with contextlib.suppress(Refused):
                part.rule.read(value)
                return True
    return False


@dataclass(frozen=True)
class Outcome:
    """code is an exit code, None for a traceback; line what stands on stderr; stopped where work begins."""

    code: int | None
    line: str
    accepted: bool = False

    @property
    def refused(self) -> bool:
        """In one line, with exit code 2."""
        return self.code == 2 and self.line.startswith("ivgr: error: ") and self.line.count("\n") == 1


def words_of(command: Sequence[str], settings: dict, folder: Path) -> list[str]:
    """The command line: of `ivgr fit` and `ivgr validate` with a file of settings, of a tool with options;
    those that have no name come first, in order."""
    if command[0] in ("fit", "validate"):
        path = folder / "sweep.yaml"
        path.write_text(yaml.safe_dump(settings, sort_keys=False))
        return [*command, "--config", str(path)]
    positional = positions(tuple(command))
    words = []
    for name in positional:
        value = settings[name]
        words += map(str, value) if isinstance(value, list) else [str(value)]
    for name, value in flat({k: v for k, v in settings.items() if k not in positional}):
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            words += [f"--{name}", *value]
        else:
            words.append(f"--{name}={value if isinstance(value, str | Path) else json.dumps(value)}")
    return [*command, *words]


def flat(settings: dict, above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values; what names a class stays whole."""
    for name, value in settings.items():
        if isinstance(value, dict) and "class_path" not in value:
            yield from flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


@cache
def positions(command: tuple[str, ...]) -> tuple[str, ...]:
    parser = capture_parser(lambda: cli.main([*command]))
    if len(command) > 1:
        parser = parser._subcommands_action._name_parser_map[command[1]]
    return tuple(action.dest for action in parser._actions if not action.option_strings)


def outcome_of(words: list[str]) -> Outcome:
    """Of one command in this process."""
    error, code, accepted = io.StringIO(), 0, False
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.main(words)
            accepted = True
        except Accepted:
            accepted = True
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            return Outcome(None, traceback.format_exc())
    return Outcome(code, error.getvalue(), accepted)


def _stop(*_, **__) -> None:
    raise Accepted


def _stopped(tool: Any) -> Any:
    if isinstance(tool, dict):
        return {name: _stopped(own) for name, own in tool.items()}
    return wraps(tool)(lambda *_, **__: _stop())


@contextlib.contextmanager
def parsed_only() -> Iterator[None]:
    """In the body a command ends once its settings are read and, of `ivgr fit`, its objects are made."""
    with (
        mock.patch.object(cli, "load_tool", lambda name: _stopped(load_tool(name))),
        mock.patch("ivgr.launch.lightning_cli.CLI._run_subcommand", _stop),
    ):
        yield


def _thread(**_) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1)


@contextlib.contextmanager
def no_work() -> Iterator[None]:
    """In the body a command ends once it has read what it is given and would train, decode or measure;
    what it draws it draws in this process."""
    places = (
        "ivgr.trainer.rl_module.IVGR.on_train_start", "ivgr.trainer.rl_module.IVGR.on_validation_epoch_start",
        "ivgr.trainer.sft_module.SFT.on_train_start",
        "ivgr.rollout.transformers_engine.TransformersEngine.respond",
        "ivgr.tools.bench.bench.measure", "ivgr.tools.bench.bench.kernel_figures",
        "ivgr.tools.bench.gpu.describe_hardware",
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        for place in places:
            stack.enter_context(mock.patch(place, _stop, create=True))
        stack.enter_context(mock.patch("ivgr.toy.curriculum.ProcessPoolExecutor", _thread))
        yield


@contextlib.contextmanager
def watched(path: Path, readable: bool) -> Iterator[list[str]]:
    """The calls by which the body looks at `path` or at what lies in it; if it is not readable, the system
    refuses to open it."""
    looks = []

    def watching(name: str, function: Any) -> Any:
        @wraps(function)
        def call(file=".", *args, **kwargs):
            if isinstance(file, str | os.PathLike) and Path(file).is_relative_to(path):
                looks.append(name)
                if name == "open" and not readable:
                    raise PermissionError(13, "Permission denied", str(file))
            return function(file, *args, **kwargs)

        return call

    with contextlib.ExitStack() as stack:
        for owner, name in ((builtins, "open"), (io, "open"), *((os, name) for name in LOOKS)):
            stack.enter_context(mock.patch.object(owner, name, watching(name, getattr(owner, name))))
        yield looks
