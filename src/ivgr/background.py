"""Work beside the main thread: a call in a daemon thread, its outcome as a `Future`."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread


def in_background(call: Callable, *arguments) -> Future:
    """Starts `call` in a daemon thread, which a program that ends does not wait for."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(call(*arguments))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future
