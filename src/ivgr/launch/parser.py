"""jsonargparse's parser, which says in one line which setting it refuses and why."""

import re
from typing import Any

from jsonargparse import ArgumentParser, get_loader, set_loader, set_parsing_settings

from ivgr.core.errors import UserError, say
from ivgr.core.readers import measure_yaml
from ivgr.core.settings import Refused
from ivgr.launch.renamed import renamed_class, renamed_setting

NO_SETTING = "is no setting here; see --help"
read_yaml = get_loader("yaml")


def load(text: str) -> Any:
    """A value, or a file that a setting names, as jsonargparse reads YAML, if it is not too much. In a value
    of one line `None` is null, too: so jsonargparse writes it for the parser of a nested class."""
    measure_yaml(text)
    value = read_yaml(text)
    return value if "\n" in text.strip() else none_to_null(value)


def none_to_null(value: Any) -> Any:
    """`value` with null for the text None, in lists and mappings as well."""
    if isinstance(value, dict):
        return {key: none_to_null(one) for key, one in value.items()}
    if isinstance(value, list):
        return [none_to_null(one) for one in value]
    return None if value == "None" else value


set_loader("yaml", load)
set_parsing_settings(docstring_parse_attribute_docstrings=True)  # a setting is described under itself


class SettingError(UserError, TypeError):
    """A setting that a parser refuses: its key, as the user writes it, and the complaint.

    jsonargparse puts the key of the class that holds it before a TypeError of a nested parser.
    """

    def __init__(self, key: str, complaint: str) -> None:
        super().__init__(f"{key} {complaint}".strip()[:300])
        self.key = key
        self.complaint = complaint

    @classmethod
    def of(cls, message: str, cause: BaseException | None, inner: "SettingError | None") -> "SettingError":
        """Returns the error for jsonargparse's `message`, the exception behind it, and the last refusal
        before it, which is that of a nested parser if the message contains it."""
        found = _KEY.fullmatch(message)
        key, rest = found.groups("") if found else ("", message)
        if inner is not None and str(inner) in rest:
            whole = f"{key}.{inner.key}".strip(".")
            return cls.renamed(whole, inner.complaint) or cls(whole, inner.complaint)
        while cause is not None and not isinstance(cause, Refused):
            cause = cause.__cause__ or cause.__context__
        if "class_path" in rest and (moved := renamed_class(rest)):
            return cls(key, "{} is named {} now".format(*moved))
        if unknown := _UNKNOWN.fullmatch(rest):
            key, rest = unknown[1], NO_SETTING
            return cls.renamed(key, rest) or cls(key, rest)
        if renamed := cls.renamed(key, rest):
            return renamed
        return cls(key, str(cause) if cause else reword(rest) if key else rest)

    @classmethod
    def renamed(cls, key: str, complaint: str) -> "SettingError | None":
        """Returns the error for a setting that has another name now; None if the complaint is another one."""
        option = _UNRECOGNIZED.match(complaint)
        name = f"{key}.{option[1]}" if option else key
        new = renamed_setting(name) if option or complaint == NO_SETTING else None
        return cls(name, f"is named {new} now") if new else None


class OneLine:
    """A parser that raises a SettingError for what it refuses. A tool's yes-or-no option needs no value:
    `--long`; its argument `words` is a list of all that are given: `a.png b.png`."""

    latest: SettingError | None = None

    def add_argument(self, *args, **kwargs) -> Any:
        if kwargs.get("type") is bool:
            kwargs |= {"nargs": "?", "const": True}
        if args == ("words",):
            kwargs = {"nargs": "+", "help": kwargs["help"]}
        return super().add_argument(*args, **kwargs)

    def parse_args(self, args: list[str] | None = None, **options) -> Any:
        if args is not None:
            switches = {name for a in self._actions if a.const is True for name in a.option_strings}
            followed = zip(args, [*args[1:], ""], strict=False)
            args = [f"{w}=true" if w in switches and n not in ("true", "false") else w for w, n in followed]
        try:
            return super().parse_args(args, **options)
        except (UnicodeError, RecursionError, OSError) as error:  # of a file that a setting names
            self.error(say(error), error)

    def instantiate(self, cfg: Any, **options) -> Any:
        """A class that none of several alternatives takes is a SettingError with its own complaint."""
        try:
            return super().instantiate(cfg, **options)
        except ValueError as error:
            if complaint := _OWN.search(str(error)):
                raise SettingError("", complaint[1]) from error
            raise

    def error(self, message: str, ex: Exception | None = None) -> None:
        error = SettingError.of(" ".join(str(message).split()), ex, OneLine.latest)
        OneLine.latest = error
        raise error from ex


class Parser(OneLine, ArgumentParser):
    """The parser of settings in which Lightning has no part."""


class ToolParser(Parser):
    """The parser of a tool: an option that is a list of strings takes them one after the other."""

    def add_argument(self, *args, **kwargs) -> Any:
        if getattr(kwargs.get("action"), "_typehint", None) == list[str]:
            del kwargs["action"]
            args, kwargs = args[:1], kwargs | {"nargs": "+", "type": str}
        return super().add_argument(*args, **kwargs)


_KEY = re.compile(r'(?:Parser key "([^"]+)"(?: element [0-9]+)?:\s*)?(.*)', re.DOTALL)
_UNKNOWN = re.compile(r"Option '([^']+)' is not accepted")
_UNRECOGNIZED = re.compile(r"[Uu]nrecognized arguments: --([\w.]+)")
_UNION = re.compile(
    r"Does not validate against .*?Subtypes: \[.*?\] Errors: | Given value type: <class '[^']+'>"
)
# In a report of what each alternative complains of: the first that is not jsonargparse's.
_OWN = re.compile(
    r"\ADoes not validate against (?:.|\n)*?"
    r"^\s*- (?!Expected a|Not a |Does not |Parser key|Problem |- )(.+)$",
    re.MULTILINE,
)
_NO_FILE = re.compile(r"- Expected a path but .*? either not accessible or invalid ")
_GIVEN = re.compile(r"(?:\. Got| Given) value: (?:NestedArg\(key='[^']*', val=)?(.*?)\)?$")
_CLASS = re.compile(r"<class '(?:[\w.]*\.)?(\w+)'>")
_LITERAL = re.compile(r"typing\.Literal\[(.*?)\]")


def reword(complaint: str) -> str:
    """Shortens what jsonargparse says about a value."""
    text = _NO_FILE.sub("", _UNION.sub("", complaint))
    given = _GIVEN.search(text)
    text = _LITERAL.sub(r"one of \1", _CLASS.sub(r"\1", _GIVEN.sub("", text))).replace("NoneType", "null")
    parts = [part for part in re.split(r"(?:^|\s)(?:- )+", text) if part]
    wanted = [part.partition("Expected a ")[2] for part in parts]
    if given and all(wanted):
        return f"is {given[1]}, must be {' or '.join(wanted)}"
    wrong = "; ".join(part for part in parts if "null" not in part)
    return f"cannot be used: {wrong}; give another"
