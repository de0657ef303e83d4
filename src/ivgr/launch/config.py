"""Configs that build on others, so that what they share is written once.

In: a YAML file whose key `base` names one file or a list, relative to the file itself; later
ones win over earlier ones, and the file wins over them all. Out: one mapping without `base`.
"""

from pathlib import Path
from typing import Any

import yaml

from ivgr.core.errors import UserError
from ivgr.core.readers import read_yaml

OPTIONS = ("--config", "-c")


def compose_words(words: list[str]) -> list[str]:
    """Command-line `words` in which every --config FILE that has a `base` stands as the text of
    what it amounts to; all else is left to the parser."""
    composed = list(words)
    for index, word in enumerate(words):
        option, joined, value = word.partition("=")
        if option not in OPTIONS:
            continue
        if joined:
            composed[index] = f"{option}={_text_of(value)}"
        elif index + 1 < len(words):
            composed[index + 1] = _text_of(words[index + 1])
    return composed


def read_config(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping of `path` on its bases. UserError names a file that is missing, no YAML
    mapping, or its own base."""
    path = path.resolve()
    if path in above:
        chain = " → ".join(file.name for file in (*above[above.index(path) :], path))
        raise UserError(f"{above[-1]}: base goes round in a circle ({chain}); drop one of them")
    config = _read_mapping(path, above)
    bases = config.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: base is {bases!r}, must be a file name or a list of them")
    merged: dict[str, Any] = {}
    for base in bases:
        merged = merge(merged, read_config(path.parent / base, (*above, path)))
    return merge(merged, config)


def merge(base: Any, own: Any) -> Any:
    """`own` on `base`: mappings key by key, anything else as a whole; so too a class, whose
    arguments fit no other."""
    if not isinstance(base, dict) or not isinstance(own, dict):
        return own
    classes = [mapping.get("class_path") for mapping in (base, own)]
    if None not in classes and classes[0] != classes[1]:
        return own
    return base | {key: merge(base.get(key), value) for key, value in own.items()}


def _text_of(value: str) -> str:
    """The composed YAML of file `value`, or `value` itself where there is nothing to compose."""
    path = Path(value)
    if "\n" in value or not path.exists():
        return value
    if "base" not in _read_mapping(path, ()):
        return value
    return yaml.safe_dump(read_config(path), sort_keys=False)


def _read_mapping(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if not path.is_file():
        asked = f"{above[-1]}: base names" if above else "--config:"
        raise UserError(f"{asked} {path}, which is no file; mend the path")
    config = read_yaml(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: must be a mapping of settings")
    return config
