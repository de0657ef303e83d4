"""Names of a package that are loaded when they are first asked for."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_face(package: str, names: dict[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of `package`.

    Args:
        package: Its `__name__`.
        names: The module inside it that defines each public name.
    """

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{names[name]}"), name)

    return __getattr__
