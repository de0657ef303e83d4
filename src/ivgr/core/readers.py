"""Files that a user gives or a run has left, one reader for each kind.

What cannot be read is a UserError that names the file. Nothing is read without a bound: neither a
device, which has no end, nor a few lines that amount to gigabytes.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ivgr.core.errors import UserError, say

T = TypeVar("T")
MOST_BYTES = 2**30
# Of a configuration, as written and with every alias in full; and how deep it may nest.
MOST_SETTINGS, DEEPEST = 2**20, 50
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_text(path: Path, most: int = MOST_BYTES, mend: str = "give another") -> str:
    """The UTF-8 text of a file of at most `most` bytes; where it is none, `mend` says what to do."""
    if not path.is_file():
        raise UserError(f"{path}: is {'a folder' if path.is_dir() else 'no file'}; mend the path")
    if (size := path.stat().st_size) > most:
        raise UserError(f"{path}: has {size:,} bytes, at most {most:,} are read; is it the right file?")
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is no text in UTF-8 ({error.reason} at byte {error.start}); {mend}"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a file that can") from error


def read_json(path: Path, mend: str, read: Callable[[Any], T] = lambda content: content) -> T:
    """Returns what `read` makes of a JSON file's content; if it fails, the error ends with `mend`."""
    text = read_text(path, mend=mend)
    try:
        return read(json.loads(text))
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not as it was written ({say(error)}); {mend}") from error


def read_json_lines(path: Path, mend: str, keys: tuple[str, ...] = (), whole: bool = False) -> list[dict]:
    """The objects, each with these keys, of a file with one per line; with `whole`, a last line that was
    cut off is left out."""
    lines = read_text(path, mend=mend).split("\n")
    if whole or not lines[-1]:
        lines.pop()
    return list(_objects(path, lines, mend, keys))


def _objects(path: Path, lines: list[str], mend: str, keys: tuple[str, ...]) -> Iterator[dict]:
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
        except (RecursionError, ValueError) as error:
            raise UserError(f"{path}: line {number} is no JSON ({say(error)}); {mend}") from error
        if not isinstance(found, dict):
            raise UserError(f"{path}: line {number} is no JSON object; {mend}")
        if lacking := [key for key in keys if key not in found]:
            raise UserError(f"{path}: line {number} has no {lacking[0]!r}; {mend}")
        yield found


def read_yaml(path: Path) -> Any:
    """The content of a YAML file of settings."""
    text = read_text(path, MOST_SETTINGS)
    try:
        measure_yaml(text)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: no YAML ({say(error)}); mend it") from error


def measure_yaml(text: str) -> None:
    """yaml.YAMLError if `text` is no YAML, nests too deeply, or amounts to too much once every alias
    is written out. The events are gone through, which costs as much as the text is long."""
    amounts, open_ = {}, [[None, 0]]  # open collections, innermost last: [anchor, amount so far]
    for event in yaml.parse(text, Loader):
        if isinstance(event, yaml.AliasEvent):
            amount = amounts.get(event.anchor, MOST_SETTINGS)
        elif isinstance(event, yaml.ScalarEvent):
            amount = len(event.value) + 1
            amounts[event.anchor] = amount
        elif isinstance(event, yaml.CollectionStartEvent):
            open_.append([event.anchor, 1])
            if len(open_) > DEEPEST:
                raise yaml.YAMLError(f"it nests more than {DEEPEST} levels deep")
            continue
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, amount = open_.pop()
            amounts[anchor] = amount
        else:
            continue
        open_[-1][1] += amount
        if open_[-1][1] > MOST_SETTINGS:
            raise yaml.YAMLError(f"its aliases amount to more than {MOST_SETTINGS:,} characters")
