"""Where whatever stops a command becomes a line on stderr.

In: the exception. Out: one line that the user can act on and exit code 2; that of a run that was asked to
stop; or the exception itself, which is a fault of the program.
"""

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ivgr.core.errors import Preempted, UserError, say
from ivgr.core.printable import printable
from ivgr.launch.notices import show_notices
from ivgr.launch.parser import OneLine

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
    message = str(error).strip().split("\n")[-1].removeprefix("ivgr.core.errors.UserError: ")
    return "; ".join([message, *getattr(error, "__notes__", ())])


@contextmanager
def error_lines() -> Iterator[None]:
    """Ends the process with a line, SystemExit, where the body raises what a user can mend."""
    OneLine.latest = None
    silence_third_party_logs()
    show_notices()
    try:
        yield
    except Preempted as stopped:
        print(f"ivgr: {printable(last_line_of(stopped))}", file=sys.stderr)
        raise SystemExit(stopped.code) from None
    except Exception as error:
        line = mendable_line(error)
        if line is None:
            raise
        print(f"ivgr: error: {printable(line)}", file=sys.stderr)
        raise SystemExit(2) from None


def silence_third_party_logs() -> None:
    """Silences notices that are no news here; transformers, which few commands load, reads the variable
    when it is loaded."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if loaded := sys.modules.get("transformers.utils.logging"):
        loaded.disable_progress_bar()
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message="`gradient_checkpointing_enable` is deprecated")
