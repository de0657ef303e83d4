"""The scalars of a run, read back from its event files; every reader of them goes through here.

In: a run's folder, or one event file. Out: a `Curve` by tag.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

from ivgr.core.errors import UserError

FILES = "*tfevents*"


class Curve(NamedTuple):
    """steps (n,) int, ascending, each once; values (n,) float."""

    steps: np.ndarray
    values: np.ndarray


def read_curves(path: Path) -> dict[str, Curve]:
    """Every scalar of the run in folder `path`, or of the event file `path`. Of an iteration that was
    repeated after a restart the last value counts. UserError where there is no event file, or
    no scalar in it."""
    points: dict[str, dict[int, float]] = {}
    for event in _events(path):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                points.setdefault(value.tag, {})[event.step] = value.simple_value
    if not points:
        raise UserError(f"{path}: its event files hold no scalars; has the run finished an iteration?")
    ordered = {tag: sorted(found.items()) for tag, found in points.items()}
    return {tag: Curve(*map(np.array, zip(*found, strict=True))) for tag, found in ordered.items()}


def _events(path: Path) -> Iterator[Event]:
    """File by file as they were begun."""
    files = [path] if path.is_file() else sorted(path.glob(FILES))
    if not files:
        raise UserError(f"{path}: no event file ({FILES}) there; give the folder of a run")
    for file in files:
        for record in RawEventFileLoader(str(file)).Load():
            yield Event.FromString(record)
