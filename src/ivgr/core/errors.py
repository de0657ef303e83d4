"""The exceptions that `ivgr` prints as a single line: what a user can mend, and the end by SIGTERM; and how
what a library refuses becomes the first."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec


class UserError(Exception):
    """Bad input: the message names the file or key, what is wrong, and the mend."""


def install_hint(extra: str) -> str:
    """The command that brings the optional packages of `extra`."""
    return f'pip install "ivgr[{extra}]"'


def missing_package(what: str, package: str, extra: str) -> UserError:
    """Returns the error to raise if `what` the user asked for needs an optional package that is not
    installed."""
    return UserError(f"{what} needs {package}: {install_hint(extra)}")


def require_package(what: str, package: str, extra: str) -> None:
    """UserError unless `package` is installed."""
    if find_spec(package) is None:
        raise missing_package(what, package, extra)


class Preempted(Exception):
    """Raised on all ranks where the run's state is whole; `code` is the process's exit code."""

    def __init__(self, code: int) -> None:
        super().__init__("stopped by SIGTERM")
        self.code = code


# What libraries raise for an argument they cannot take, as far as they keep to Python's own.
REFUSALS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NotImplementedError, OSError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip


@contextmanager
def refusals(key: str, mend: str, *more: type[Exception]) -> Iterator[None]:
    """Turns what a library raises in the block because of the setting `key` into a UserError: exceptions of
    REFUSALS and `more`, in the library's own words, followed by `mend`."""
    try:
        yield
    except (*REFUSALS, *more) as error:
        raise UserError(f"{key}: {say(error)}; {mend}") from error


def say(error: BaseException) -> str:
    """The error's message in one line, with its kind where that says more."""
    text = " ".join(str(error).split())[:200]
    kind = type(error).__name__
    return text if text and not isinstance(error, LookupError) else f"{kind} {text}".strip()
