"""The one way to a run's loggers: every scalar, text and picture that a callback has to show.

In: `trainer.loggers`, any of Lightning's. Out: TensorBoard gets a sub-run for each stream; another logger
gets STREAM/TAG, and texts and pictures if it takes them as WandbLogger does (`log_text`, `log_image`).
"""

from collections.abc import Iterable
from typing import Protocol
from weakref import WeakKeyDictionary

import lightning as L
import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary

from ivgr.callbacks.tensorboard import EventFiles
from ivgr.plotting.tags import Name


class Outlet(Protocol):
    """The side of the writer that serves one logger."""

    def scalars(self, values: dict[Name, float], step: int) -> None: ...

    def text(self, name: Name, markdown: str, step: int) -> None: ...

    def picture(self, name: Name, picture: np.ndarray, caption: str, step: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class NamedFigures:
    """A logger with one list of names."""

    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def scalars(self, values: dict[Name, float], step: int) -> None:
        self.logger.log_metrics({str(name): value for name, value in values.items()}, step)

    def text(self, name: Name, markdown: str, step: int) -> None:
        if hasattr(self.logger, "log_text"):
            self.logger.log_text(key=str(name), columns=["text"], data=[[markdown]], step=step)

    def picture(self, name: Name, picture: np.ndarray, caption: str, step: int) -> None:
        if hasattr(self.logger, "log_image"):
            self.logger.log_image(key=str(name), images=[picture], step=step, caption=[caption])

    def flush(self) -> None:
        self.logger.save()

    def close(self) -> None:
        """Lightning closes it."""


class Writer:
    """Writes to all `loggers`; without any it does nothing, as on ranks other than the first. What is
    written is on disk, as far as a logger writes files, after `flush`.

    A stream of None is the whole run. Pictures are (height, width, 3) uint8.
    """

    def __init__(self, loggers: Iterable[Logger]) -> None:
        self.outlets: list[Outlet] = [
            EventFiles(logger) if isinstance(logger, TensorBoardLogger) else NamedFigures(logger)
            for logger in loggers
        ]

    def scalar(self, tag: str, value: float, step: int, stream: str | None = None) -> None:
        self.scalars({Name(tag, stream): value}, step)

    def scalars(self, values: dict[Name, float], step: int) -> None:
        """Several of one step."""
        for outlet in self.outlets:
            outlet.scalars(values, step)

    def text(self, tag: str, markdown: str, step: int, stream: str | None = None) -> None:
        for outlet in self.outlets:
            outlet.text(Name(tag, stream), markdown, step)

    def picture(
        self, tag: str, picture: np.ndarray, step: int, stream: str | None = None, caption: str = ""
    ) -> None:
        for outlet in self.outlets:
            outlet.picture(Name(tag, stream), picture, caption, step)

    def summary(self, summary: Summary, run: str | None = None) -> None:
        """Writes what only TensorBoard has: a layout of charts, a run's settings."""
        for outlet in self._tensorboards():
            outlet.add(summary, 0, run)

    def tensorboard_scalars(self, values: dict[Name, float], step: int) -> None:
        """Writes scalars that only TensorBoard needs: figures beside a run's settings."""
        for outlet in self._tensorboards():
            outlet.scalars(values, step)

    def _tensorboards(self) -> list[EventFiles]:
        return [outlet for outlet in self.outlets if isinstance(outlet, EventFiles)]

    def flush(self) -> None:
        for outlet in self.outlets:
            outlet.flush()

    def close(self) -> None:
        for outlet in self.outlets:
            outlet.close()


_WRITERS: WeakKeyDictionary[L.Trainer, Writer] = WeakKeyDictionary()


def writer_of(trainer: L.Trainer) -> Writer:
    """The trainer's one writer."""
    if trainer not in _WRITERS:
        _WRITERS[trainer] = Writer(trainer.loggers if trainer.is_global_zero else ())
    return _WRITERS[trainer]
