"""`ivgr bench`: prints how the contenders did, and writes it as JSON."""

import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ivgr.bench.measure import Measurement, measure
from ivgr.bench.phases import rollout_contenders, update_contenders
from ivgr.bench.setting import Setting
from ivgr.errors import UserError


def update(setting: Setting = Setting(), repeats: int = 7, json: Path | None = None) -> None:  # noqa: B008
    """Time reference log-probs and one optimizer update: shared prefix against separate rows.

    Args:
        setting: Model, prompts and responses.
        repeats: Rounds; medians are reported.
        json: File for the figures.
    """
    _report(measure(update_contenders(setting), repeats), setting, json)


def rollout(setting: Setting = Setting(), repeats: int = 7, json: Path | None = None) -> None:  # noqa: B008
    """Time sampling of responses of forced length: shared prefix against separate rows.

    Args:
        setting: Model, prompts and responses.
        repeats: Rounds; medians are reported.
        json: File for the figures.
    """
    _report(measure(rollout_contenders(setting), repeats), setting, json)


def step(
    setting: Setting = Setting(queries=16, response=36),  # noqa: B008
    long: bool = False,
    repeats: int = 5,
    json: Path | None = None,
) -> None:
    """Time a whole iteration on the tiny world against TRL's GRPOTrainer (pip install "ivgr[bench]").

    Args:
        setting: Queries, group size and response length; the model and the prompts are the tiny world's.
        long: Images of 512 tokens instead of 25.
        repeats: Rounds; medians are reported.
        json: File for the figures.
    """
    if find_spec("trl") is None:
        raise UserError('bench step compares with TRL, which is not installed: pip install "ivgr[bench]"')
    from ivgr.bench.step import step_figures

    _report(step_figures(setting, long, repeats), setting, json)


def _report(figures: dict[str, Measurement], setting: Setting, path: Path | None) -> None:
    _print(figures)
    if path is not None:
        report = {name: asdict(figure) for name, figure in figures.items()} | {"setting": asdict(setting)}
        path.write_text(json.dumps(report, indent=1))


def _print(figures: dict[str, Measurement]) -> None:
    """One row a contender; ratios to the tree's."""
    tree = figures["tree"]
    table = Table("", "seconds", "× tree", "tokens", "images seen", "peak MiB", "× tree")
    for name, figure in figures.items():
        table.add_row(
            name,
            f"{figure.seconds:.3f}",
            f"{figure.seconds / tree.seconds:.2f}",
            str(figure.tokens),
            str(figure.vision_passes),
            f"{figure.peak_bytes / 2**20:.1f}",
            f"{figure.peak_bytes / max(tree.peak_bytes, 1):.2f}",
        )
    Console().print(table)


BENCH = {"step": step, "update": update, "rollout": rollout}
