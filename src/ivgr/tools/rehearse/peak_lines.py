"""The largest tensors at a phase's peak, by source line.

In: a snapshot of PyTorch's allocator. Out: bytes by line, of what was allocated while it was recorded.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SHOWN = 8
# Functions and files that hand on what others ask for.
PASSING_ON = ("__call__", "_fn", "inner", "wrapped_fn", "wrapper", "decorate_context")
HELPERS = "/lightning/fabric/utilities/"
OWN = str(Path(__file__).parent)


def find_peak_lines(snapshot: dict[str, Any]) -> list[tuple[str, int]]:
    """The SHOWN lines that hold the most at the peak: what is allocated at the end is known, and each event
    is undone from the last to the first."""
    alive = {
        block["address"]: (block["size"], block.get("frames", ()))
        for segment in snapshot["segments"]
        for block in segment["blocks"]
        if block["state"] == "active_allocated"
    }
    events = [one for trace in snapshot["device_traces"] for one in trace]
    last = _find_peak(sum(size for size, _ in alive.values()), events)
    for event in reversed(events[last:]):
        _undo(alive, event)
    lines: Counter[str] = Counter()
    for size, frames in alive.values():
        if frames:
            lines[name_line(frames)] += size
    return lines.most_common(SHOWN)


def name_line(frames: Iterable[dict[str, Any]]) -> str:
    """FOLDER/FILE:LINE of the innermost frame outside torch, with the function of torch that it calls."""
    inner = ""
    for frame in frames:
        file = frame["filename"]
        if file.startswith(OWN) or HELPERS in file:
            continue
        if "/torch/" not in file and file.endswith(".py"):
            return f"{'/'.join(file.rsplit('/', 2)[-2:])}:{frame['line']}" + (f" ({inner})" if inner else "")
        if file.endswith(".py") and frame["name"] not in PASSING_ON:
            inner = inner or frame["name"]
    return inner or "autograd"


def _find_peak(held: int, events: list[dict[str, Any]]) -> int:
    """How many of `events` precede the peak, `held` bytes being allocated after the last."""
    most, last = held, len(events)
    for index in range(len(events) - 1, -1, -1):
        event = events[index]
        if event["action"] == "alloc":
            held -= event["size"]
        elif event["action"] == "free_requested":
            held += event["size"]
        if held > most:
            most, last = held, index
    return last


def _undo(alive: dict[int, tuple[int, Any]], event: dict[str, Any]) -> None:
    if event["action"] == "alloc":
        alive.pop(event["addr"], None)
    elif event["action"] == "free_requested":
        alive[event["addr"]] = (event["size"], event.get("frames", ()))
