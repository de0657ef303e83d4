"""Figures of a run's curves, for papers and notebooks.

In: curves by STREAM/TAG or TAG, as `ivgr.plotting.event_files` reads them. Out: matplotlib figures; the
charts are those of TensorBoard's CUSTOM SCALARS tab (`ivgr.plotting.chart_layout`).
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ivgr.core.prompts import GROUNDED, SINGLE, TEXTUAL
from ivgr.judge.protocol import CONSISTENCY_SCORES
from ivgr.plotting.chart_layout import CHARTS
from ivgr.plotting.event_files import Curve
from ivgr.plotting.share_stack import SHADES

Curves = dict[str, Curve]

COLORS = {GROUNDED: "#c8553d", TEXTUAL: "#2f6690", SINGLE: "#8d99a6"}
OTHERS = ("#3a3a3a", "#5b8e7d", "#d9a441", "#7d5ba6")
LEGEND = {"fontsize": 8, "edgecolor": "none", "framealpha": 0.75}
PANEL = (2.9, 2.2)


@dataclass(frozen=True)
class Symptom:
    """A chart in which a broken run shows: the run's name, what was done to it, the name of one of its
    curves and what that means."""

    run: str
    cause: str
    curve: str
    title: str


def draw_charts(curves: Curves, category: str, window: int = 10) -> Figure:
    """The charts of a category of the layout, four a row, streams overlaid; a line is the mean of
    `window` iterations, the points behind it are the iterations. Charts without a curve are left
    out."""
    found = {
        title: _without_total({n: curve for n, curve in curves.items() if re.fullmatch(pattern, _tag(n))})
        for title, pattern in CHARTS[category].items()
    }
    found = {title: lines for title, lines in found.items() if lines}
    figure, panels = make_panels(len(found), 4)
    for panel, (title, lines) in zip(panels, found.items(), strict=True):
        for index, (name, curve) in enumerate(lines.items()):
            draw_curve(panel, curve, window, _color(name, index), _label(name, lines))
        panel.set_title(title, fontsize=9)
        if len(lines) > 1:
            panel.legend(**LEGEND)
    return figure


def draw_shares(curves: Curves, window: int = 10) -> Figure:
    """The share of each consistency score among the textual rollouts that had a reference, stacked
    over the iterations."""
    figure, (panel,) = make_panels(1, 1, (5.4, 3.0))
    shares = [curves[f"reward_consistency/share_{score:g}"] for score in CONSISTENCY_SCORES]
    layers = [average(share.values, window) for share in shares]
    names = [f"{score:g}" for score in CONSISTENCY_SCORES]
    panel.stackplot(shares[0].steps, layers, labels=names, colors=np.array(SHADES) / 255)
    panel.set(ylim=(0, 1), xlim=shares[0].steps[[0, -1]])
    panel.set_ylabel("share of compared rollouts", fontsize=8)
    handles, labels = panel.get_legend_handles_labels()
    panel.legend(
        handles[::-1],
        labels[::-1],
        title="score",
        frameon=False,
        fontsize=8,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
    )
    return figure


def draw_symptoms(runs: dict[str, Curves], healthy: str, symptoms: list[Symptom], window: int = 5) -> Figure:
    """A panel a symptom: the curve of the broken run beside that of the run called `healthy`, as far
    as the broken one went."""
    figure, panels = make_panels(len(symptoms), 4)
    for panel, symptom in zip(panels, symptoms, strict=True):
        broken = runs[symptom.run][symptom.curve]
        sound = runs[healthy][symptom.curve]
        shown = sound.steps <= broken.steps[-1]
        draw_curve(panel, Curve(sound.steps[shown], sound.values[shown]), window, "#8d99a6", "healthy")
        draw_curve(panel, broken, window, "#b23a48", symptom.cause)
        panel.set_title(symptom.title, fontsize=9)
        panel.legend(**LEGEND)
    return figure


def make_panels(count: int, columns: int, size: tuple[float, float] = PANEL) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels of `size` inches, `columns` a row, iterations along the bottom."""
    rows, columns = -(-count // columns), min(count, columns)
    figure = Figure(figsize=(columns * size[0], rows * size[1]), layout="constrained", dpi=110)
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for unused in panels[count:]:
        unused.set_axis_off()
    for panel in panels[:count]:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    for panel in panels[max(count - columns, 0) : count]:
        panel.set_xlabel("iteration", fontsize=8)
    return figure, panels[:count]


def draw_curve(panel: Axes, curve: Curve, window: int, color: str, label: str) -> None:
    """A few values, such as held-out figures, are joined as they are."""
    if len(curve.steps) <= 2 * window:
        panel.plot(curve.steps, curve.values, "o-", color=color, label=label, lw=1.4, ms=3)
        return
    panel.plot(curve.steps, curve.values, ".", color=color, alpha=0.25, ms=3)
    panel.plot(curve.steps, average(curve.values, window), color=color, label=label, lw=1.6)


def average(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the `window` values around each, of fewer at the ends."""
    half = (window - 1) // 2
    sums, counts = (
        np.convolve(row, np.ones(window))[half : half + len(row)] for row in (values, np.ones(len(values)))
    )
    return sums / counts


def _stream(name: str) -> str | None:
    first = name.partition("/")[0]
    return first if first in COLORS else None


def _tag(name: str) -> str:
    return name.partition("/")[2] if _stream(name) else name


def _without_total(lines: Curves) -> Curves:
    """Returns only the curves of streams, if there are any."""
    return {name: curve for name, curve in lines.items() if _stream(name)} or lines


def _color(name: str, index: int) -> str:
    return COLORS.get(_stream(name) or "", OTHERS[index % len(OTHERS)])


def _label(name: str, names: Collection[str]) -> str:
    """Returns what distinguishes `name` from the other `names` of its chart."""
    shared = set.intersection(*(set(other.split("/")) for other in names))
    return " ".join(part for part in name.split("/") if part not in shared).replace("_", " ")
