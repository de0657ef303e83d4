"""The types of settings: numbers with bounds, dtypes, devices, and settings that have one value here.

A parser reads a setting by its annotation, and `checked` holds a call from Python to the same: so a
bound is written once, in the signature, and every refusal is one line that names the setting.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from math import isfinite
from numbers import Integral, Real
from re import fullmatch
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

from jsonargparse.typing import register_type

from ivgr.core.errors import UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T", bound=Callable)
Dtype = Literal["float32", "bfloat16", "float16"]


def dtype_of(name: Dtype) -> "torch.dtype":
    import torch  # here, since `ivgr --help` needs no torch

    return getattr(torch, name)


class Refused(ValueError):
    """A value that a setting cannot have: the message says what it must be."""


@dataclass(frozen=True)
class Interval:
    """The interval from low to high; with `above`, low itself is excluded. If kind is int, whole numbers
    only."""

    kind: type
    low: float
    high: float
    above: bool = False

    def read(self, value: object) -> int | float:
        """`value`, a number or its text, as a plain number; Refused if it is none of the interval."""
        number = _read_number(self.kind, value)
        inside = number is not None and isfinite(number) and self.low <= number <= self.high
        if number is None or not inside or (self.above and number == self.low):
            raise Refused(f"is {_shorten(value)}, must be {self}")
        return number

    def __str__(self) -> str:
        name = "a whole number" if self.kind is int else "a number"
        if self.above:
            return f"{name} above {self.low:,}, at most {self.high:,}"
        return f"{name} from {self.low:,} to {self.high:,}"


def _read_number(kind: Callable[[Any], int | float], value: Any) -> int | float | None:
    if isinstance(value, str):
        try:
            return kind(value)
        except ValueError:
            return None
    known = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return kind(value) if known else None


def number(name: str, kind: type, low: float, high: float, above: bool = False) -> type:
    """A type of settings: `kind`, int or float, within an interval (see `Interval`)."""
    interval = Interval(kind, low, high, above)
    made = type(name, (kind,), {"__doc__": f"{interval}.", "__module__": __name__, "rule": interval})
    _register(made, interval.read, kind)
    return made


@dataclass(frozen=True)
class Wording:
    """Text that matches a pattern as a whole; `said` says it in words."""

    pattern: str
    said: str

    def read(self, value: object) -> str:
        """`value`; Refused if it is none of these words."""
        if not isinstance(value, str) or not fullmatch(self.pattern, value):
            raise Refused(f"is {_shorten(value)}, must be {self}")
        return value

    def __str__(self) -> str:
        return self.said


def wording(name: str, pattern: str, said: str) -> type:
    """A type of settings: text of one form (see `Wording`)."""
    rule = Wording(pattern, said)
    made = type(name, (str,), {"__doc__": f"{rule}.", "__module__": __name__, "rule": rule})
    _register(made, rule.read, str)
    return made


def fixed(value: Any, mend: str) -> Any:
    """The type of a setting that has one value here; `mend` says what to do instead."""

    def read(given: object) -> Any:
        if given != value and str(given).casefold() not in (str(value).casefold(), f"{value}.0"):
            raise Refused(f"is {_shorten(given)}, which this loop does not use; leave it out: {mend}")
        return value

    made = type("Fixed", (), {"__doc__": mend, "__module__": __name__})
    _register(made, read, lambda given: given)
    return made


def _register(made: type, read: Callable, write: Callable) -> None:
    """Every value is read, also one that is of a number's own type already."""
    register_type(made, write, read, type_check=lambda *_: False)


# No setting needs more, and what is more is a slip: 1e30 overflows where 1e9 is merely odd.
MOST = 10**9
if TYPE_CHECKING:  # a type checker knows no bounds
    PositiveInt: TypeAlias = int
    NonNegativeInt: TypeAlias = int
    AtLeastTwo: TypeAlias = int
    Seed: TypeAlias = int
    Outage: TypeAlias = int
    PositiveFloat: TypeAlias = float
    NonNegativeFloat: TypeAlias = float
    AboveOne: TypeAlias = float
    Share: TypeAlias = float
    PositiveShare: TypeAlias = float
    Device: TypeAlias = str
else:
    PositiveInt = number("PositiveInt", int, 1, MOST)
    NonNegativeInt = number("NonNegativeInt", int, 0, MOST)
    AtLeastTwo = number("AtLeastTwo", int, 2, MOST)
    Seed = number("Seed", int, 0, 2**32 - 1)
    Outage = number("Outage", int, 10, 3600)
    PositiveFloat = number("PositiveFloat", float, 0, MOST, above=True)
    NonNegativeFloat = number("NonNegativeFloat", float, 0, MOST)
    AboveOne = number("AboveOne", float, 1, MOST, above=True)
    Share = number("Share", float, 0, 1)
    PositiveShare = number("PositiveShare", float, 0, 1, above=True)
    Device = wording("Device", r"cpu|(cuda|mps)(:\d{1,4})?", "cpu, cuda, cuda:0, … or mps")


def checked(prefix: str) -> Callable[[T], T]:
    """Decorates a class or function whose arguments are settings: a call with a value that its
    annotation does not allow is a UserError that names PREFIX + argument, as the user writes it.

    Looked at are types of this module and literals, alone or beside None; all else is the callee's.
    """

    def decorate(target: T) -> T:
        function = target.__init__ if inspect.isclass(target) else target
        signature = inspect.signature(function)
        hints = {name: hint for name, p in signature.parameters.items() if _is_known(hint := p.annotation)}

        @wraps(function)
        def call(*args, **kwargs) -> Any:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError:  # which the call itself words better
                return function(*args, **kwargs)
            for name in hints.keys() & given.keys():
                _check(f"{prefix}{name}", given[name], hints[name])
            return function(*args, **kwargs)

        if not inspect.isclass(target):
            return call  # pyright: ignore[reportReturnType]  of the same signature
        target.__init__ = call
        return target  # pyright: ignore[reportReturnType]

    return decorate


def alternatives(hint: Any) -> tuple:
    """Returns the members of a union, or the annotation itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _is_known(hint: Any) -> bool:
    parts = [part for part in alternatives(hint) if part not in (None, type(None))]
    return bool(parts) and all(hasattr(part, "rule") or get_origin(part) is Literal for part in parts)


def _check(name: str, value: object, hint: Any) -> None:
    complaints = []
    for part in alternatives(hint):
        if part is type(None) or get_origin(part) is Literal:
            allowed = (None,) if part is type(None) else get_args(part)
            if value in allowed:
                return
            complaints.append(f"is {_shorten(value)}, must be {' or '.join(map(str, allowed))}")
            continue
        try:
            part.rule.read(value)
            return
        except Refused as refused:
            complaints.insert(0, str(refused))
    raise UserError(f"{name} {complaints[0]}")


def _shorten(value: object) -> str:
    return str(value)[:100]
