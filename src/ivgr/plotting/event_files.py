"""The scalars of a run, read back from its event files; every reader of them goes through here.

In: a run's folder, or one event file, of any age. Out: a `Curve` by name, STREAM/TAG or TAG (see
`ivgr.plotting.tags`): what older runs wrote under other tags is found under today's.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

from ivgr.core.errors import UserError
from ivgr.core.prompts import STREAMS
from ivgr.plotting.tags import name_of

FILES = "*tfevents*"


class Curve(NamedTuple):
    """steps (n,) int, ascending, each once; values (n,) float."""

    steps: np.ndarray
    values: np.ndarray


def read_curves(path: Path) -> dict[str, Curve]:
    """Every scalar of the run in folder `path` and of its streams' sub-runs, or of the event file `path`.
    Of an iteration that was repeated after a restart the last value counts. UserError where there is no
    event file, or no scalar in it."""
    points: dict[str, dict[int, float]] = {}
    for folder, file in _event_files(path):
        for event in _events(file):
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    tag, stream = name_of(value.tag)
                    name = f"{stream or folder}/{tag}" if stream or folder else tag
                    points.setdefault(name, {})[event.step] = value.simple_value
    if not points:
        raise UserError(f"{path}: its event files hold no scalars; has the run finished an iteration?")
    ordered = {name: sorted(found.items()) for name, found in points.items()}
    return {name: Curve(*map(np.array, zip(*found, strict=True))) for name, found in ordered.items()}


def _event_files(path: Path) -> list[tuple[str | None, Path]]:
    """Each with the stream whose sub-run it is of; those of a folder as they were begun."""
    if path.is_file():
        return [(None, path)]
    places = {None: path, **{stream: path / stream for stream in STREAMS}}
    found = [(stream, file) for stream, folder in places.items() for file in sorted(folder.glob(FILES))]
    if not found:
        raise UserError(f"{path}: no event file ({FILES}) there; give the folder of a run")
    return found


def _events(file: Path) -> Iterator[Event]:
    for record in RawEventFileLoader(str(file)).Load():
        yield Event.FromString(record)
