"""`ivgr bench gpu`: all that is promised of one GPU, one child process after the other, into one file.

In: the parts of gpu_parts.py. Out: their figures as JSON, written after each. On the null GPU of `ivgr
rehearse` the same children run; what they tell of time and speed is left out.
"""

import json as reader
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

import ivgr
from ivgr.core.atomic_files import write_json
from ivgr.core.errors import UserError
from ivgr.core.settings import PositiveInt, checked
from ivgr.tools.bench.children import run_child
from ivgr.tools.bench.gpu_parts import PARTS, Part
from ivgr.tools.plan.plan import parse_memory
from ivgr.tools.rehearse import null_gpu

PRETENDED = 150  # GB of the null GPU, which has room for all parts
LEAST = 30  # seconds: with less time left no part is begun
DONE, FAILED, LEFT = "done", "failed", "not run"
ROOT = Path(ivgr.__file__).parents[2]


@checked("bench gpu: --")
def gpu(
    json: Path = Path("gpu.json"),
    minutes: PositiveInt = 20,
    memory: str | None = None,
    layers: PositiveInt | None = None,
    parts: list[str] = list(PARTS),
    null: bool = False,
) -> None:
    """Run everything that needs a GPU, one child process each, and write the figures to one file.

    Exit code 1 if a part fails. A second run goes on where the first was: what is measured is kept.

    Args:
        json: File for the figures, written after each part.
        minutes: Time for all parts; those that find none left are not run.
        memory: Leaves out parts that need more, such as 80GB; by default what the GPU has.
        layers: Cuts models to so many layers, to try it out.
        parts: Names of those to run; all by default.
        null: Tries it out on a GPU that does nothing (see `ivgr rehearse`), without numbers.
    """
    chosen = _choose(parts)
    if memory is not None:
        parse_memory(memory, "bench gpu")
    known = _read(json)
    if null and not null_gpu.is_loaded():
        options = {"json": json, "minutes": minutes, "memory": memory, "layers": layers}
        words = [f"--{name}={value}" for name, value in options.items() if value is not None]
        words += ["--parts", *parts]
        if code := null_gpu.run_on_null_gpu(["bench", "gpu", *words], PRETENDED):
            raise SystemExit(code)
        return
    hardware = describe_hardware()
    _keep_apart(json, known, hardware)
    limit = parse_memory(memory or f"{hardware['bytes'] / 1e9}GB", "bench gpu")
    found = run_parts([part.cut(layers) for part in chosen], json, known, hardware, 60 * minutes, limit)
    show(found)
    if any(found[part.name]["state"] == FAILED for part in chosen):
        raise SystemExit(1)


def _choose(names: list[str]) -> list[Part]:
    for name in names:
        if name not in PARTS:
            raise UserError(f"bench gpu --parts: {name!r} is none of {', '.join(PARTS)}")
    return [part for name, part in PARTS.items() if name in names]


def _read(path: Path) -> dict[str, Any]:
    """What a run before has written; UserError for a file of another kind."""
    if not path.absolute().parent.is_dir():
        raise UserError(f"bench gpu --json {path}: there is no folder {path.parent}; make it first")
    if not path.exists():
        return {}
    try:
        known = reader.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        known = None
    if not isinstance(known, dict) or not all(
        isinstance(known.get(key), dict) for key in ("parts", "hardware")
    ):
        raise UserError(
            f"bench gpu --json {path}: holds something that is not this command's; name another file"
        )
    return known


def _keep_apart(path: Path, known: dict[str, Any], hardware: dict[str, Any]) -> None:
    """UserError if `path` holds figures of another GPU or other versions; commits may differ."""
    if not known:
        return
    for name, one in hardware.items():
        if name != "commit" and known["hardware"].get(name) != one:
            raise UserError(
                f"bench gpu --json {path}: was measured with {name} {known['hardware'].get(name)}, here is "
                f"{one}; name another file"
            )


def describe_hardware() -> dict[str, Any]:
    """What `ivgr.tools.bench.hardware` says of this machine, in a process of its own: a process that has seen
    the GPU holds memory there."""
    command = [sys.executable, "-m", "ivgr.tools.bench.hardware"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    hardware = reader.loads(said.splitlines()[-1])
    if hardware["gpu"] is None:
        raise UserError("bench gpu: there is no GPU here; --null tries it out without one")
    return hardware


def run_parts(
    parts: Sequence[Part],
    path: Path,
    known: dict[str, Any],
    hardware: dict[str, Any],
    seconds: float,
    limit: float,
) -> dict[str, Any]:
    """Runs what `known` has not measured by the same command, and writes `path` after each. Returns all parts
    by name."""
    report = {"date": _now(), "hardware": hardware, "parts": dict(known.get("parts", {}))}
    end = time.monotonic() + seconds
    for number, part in enumerate(parts, 1):
        before = report["parts"].get(part.name, {})
        if before.get("state") == DONE and before["command"] == part.command:
            print(f"[{number}/{len(parts)}] {part.name}: is done already", flush=True)
            continue
        left = end - time.monotonic()
        if limit < part.gigabytes * 1e9:
            found = {"state": LEFT, "error": f"needs a GPU of {part.gigabytes} GB"}
        elif left < LEAST:
            found = {"state": LEFT, "error": "no time was left"}
        else:
            print(f"[{number}/{len(parts)}] {part.name}: {part.command}", flush=True)
            found = {"commit": hardware["commit"]} | run_part(part, min(part.seconds, left))
            print(f"  {found['state']}, {found['seconds']:.0f} s", flush=True)
        promised = {"page": part.page, "heading": part.heading, "command": part.command}
        report["parts"][part.name] = promised | found
        write_json(path, report)
    return report["parts"]


def run_part(part: Part, seconds: float) -> dict[str, Any]:
    """Runs one child; returns its state, seconds, exit code and figures, or its last words."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        words = [*part.words, "--json", str(file)] if part.module == "ivgr" else part.words
        start = time.monotonic()
        code, lines = run_child(null_gpu.module_command(part.module, words), seconds, ROOT)
        found = {"date": _now(), "seconds": round(time.monotonic() - start, 1), "exit_code": code}
        if code == 0:
            figures = reader.loads(file.read_text()) if file.exists() else {"said": lines[-1]}
            return found | {"state": DONE, "figures": as_measured(figures)}
    if code is None and seconds < part.seconds:
        return found | {"state": LEFT, "error": "no time was left to end it"}
    error = f"was stopped after {seconds} s" if code is None else (lines or ["said nothing"])[-1]
    return found | {"state": FAILED, "error": error, "output": lines}


def as_measured(figures: Any) -> Any:
    """The figures of a child; on the null GPU, where nothing takes time, without numbers that are not
    whole: bytes and counts are true there."""
    if not null_gpu.is_loaded():
        return figures
    if isinstance(figures, dict):
        return {name: as_measured(one) for name, one in figures.items()}
    if isinstance(figures, list):
        return [as_measured(one) for one in figures]
    return None if isinstance(figures, float) else figures


def show(found: dict[str, Any]) -> None:
    """Prints what was measured and what was not."""
    table = Table("part", "", "seconds", "promised in", box=None, padding=(0, 1))
    for name, one in found.items():
        state = one["state"] if one["state"] == DONE else f"{one['state']}: {one['error']}"
        table.add_row(name, state, str(one.get("seconds", "")), f"{one['page']}: {one['heading']}")
    Console(width=110).print(table)
    if null_gpu.is_loaded():
        print("null GPU: no numbers")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
