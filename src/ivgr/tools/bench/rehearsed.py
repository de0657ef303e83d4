"""`ivgr bench rehearsed`: whether the null GPU of `ivgr rehearse` needs the memory that a real one needs.

In: a `Setting`. Out: the peak of one update on this GPU, and of the same update on the null GPU.
"""

import json as writer
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table

from ivgr.core.atomic_files import write_json
from ivgr.core.errors import UserError
from ivgr.core.settings import checked
from ivgr.tools.bench.bench_setting import Setting
from ivgr.tools.bench.children import run_child
from ivgr.tools.bench.measure import measure
from ivgr.tools.bench.phases import update_contenders
from ivgr.tools.rehearse import null_gpu

SMALL = Setting(
    shape="2b", queries=2, image_tokens=1000, response=100, micro_batch=1, device="cuda", dtype="bfloat16"
)
NEAR = 0.1
GIGABYTES = 400
SECONDS = 600


@checked("bench rehearsed: --")
def rehearsed(setting: Setting = SMALL, json: Path | None = None) -> None:
    """Hold the peak memory of an update on this GPU to what it is on the null GPU of `ivgr rehearse`.

    Exit code 1 if they are more than a tenth apart.

    Args:
        setting: Model, prompts and responses.
        json: File for the figures.
    """
    if not setting.device.startswith("cuda"):
        raise UserError(f"bench rehearsed --setting.device is {setting.device}, must be cuda")
    if not torch.cuda.is_available():
        raise UserError("bench rehearsed compares with a real GPU, and there is none here")
    expected = peaks_on_null_gpu(setting)
    found = {name: one.peak_bytes for name, one in measure(update_contenders(setting), 1).items()}
    table = Table("", "peak MiB", "rehearsed MiB", "rehearsed / peak")
    for name, peak in found.items():
        sizes = f"{peak / 2**20:.1f}", f"{expected[name] / 2**20:.1f}"
        table.add_row(name, *sizes, f"{expected[name] / peak:.3f}")
    Console().print(table)
    if json is not None:
        peaks = {
            name: {"peak_bytes": peak, "rehearsed_bytes": expected[name]} for name, peak in found.items()
        }
        write_json(json, peaks | {"setting": asdict(setting)})
    if far := [name for name, peak in found.items() if abs(expected[name] - peak) > NEAR * peak]:
        print(f"more than {NEAR:.0%} apart: {', '.join(far)}")
        raise SystemExit(1)


def peaks_on_null_gpu(setting: Setting) -> dict[str, int]:
    """The peak of every contender of `ivgr bench update` on the null GPU, in a process of its own."""
    given = {name: value for name, value in asdict(setting).items() if value is not None}
    options = [
        f"--setting.{name}={value if isinstance(value, str) else writer.dumps(value)}"
        for name, value in given.items()
    ]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        words = ["bench", "update", "--repeats", "1", "--json", str(file), *options]
        command = null_gpu.staged_command("ivgr", words)
        code, lines = run_child(command, SECONDS, Path.cwd(), null_gpu.child_environment(GIGABYTES))
        if code != 0:
            raise UserError(f"bench rehearsed: the update did not run on the null GPU: {(lines or [''])[-1]}")
        report = writer.loads(file.read_text())
    return {name: one["peak_bytes"] for name, one in report.items() if name != "setting"}
