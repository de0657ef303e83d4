"""Work beside the main thread: a call in a daemon thread, its outcome as a `Future`."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Any

from ivgr.core.errors import UserError


def in_background(call: Callable, *arguments) -> Future:
    """Starts `call` in a daemon thread, which a program that ends does not wait for."""
    future: Future = Future()
    Thread(target=_run, args=(future, call, arguments), daemon=True).start()
    return future


def wait_for(seconds: float, refusal: str, call: Callable, *arguments) -> Any:
    """Runs `call` in a daemon thread and returns its result; after `seconds` it abandons the thread and
    raises UserError with `refusal`."""
    future = in_background(call, *arguments)
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():
            raise
        raise UserError(refusal) from None


def _run(future: Future, call: Callable, arguments: tuple) -> None:
    try:
        future.set_result(call(*arguments))
    except BaseException as error:
        future.set_exception(error)
    finally:
        # An error keeps the frames that it has passed, this one too: with the future in it, it would
        # keep itself, and all that the call has held.
        del future, call, arguments
