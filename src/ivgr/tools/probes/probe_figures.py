"""The probes' figures, for a paper or a notebook (pip install "ivgr[notebooks]"). In: what the probes
found. Out: matplotlib figures."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from transformers import PreTrainedModel

from ivgr.core.printable import as_label
from ivgr.core.prompts import GROUNDED, TEXTUAL
from ivgr.plotting.pictures import TILE
from ivgr.tools.probes.annotated_response import AnnotatedResponse
from ivgr.tools.probes.attention_probe import Attention, Look
from ivgr.tools.probes.causal import Causal
from ivgr.tools.probes.heatmap import draw_heat, heat_of
from ivgr.tools.probes.localization import ReadOut
from ivgr.tools.probes.probe_interval import Interval
from ivgr.tools.probes.trace import Traced, trace_readings

COLORS = {GROUNDED: "#d1495b", TEXTUAL: "#2a6f97"}
GREY = "#8d99ae"
STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
POINTS = {"noun": "at the noun", "place": "before the place"}


def show_maps(
    policy: PreTrainedModel,
    readings: Mapping[str, Sequence[AnnotatedResponse]],
    look: Look = "place",
    layer: int = -1,
    head: int | None = None,
) -> Figure:
    """Each stream's attention over the pictures, gold boxes in green, the response below; the same
    samples in each stream, one column per sample. All heads, unless one is named."""
    columns = len(next(iter(readings.values())))
    with plt.rc_context(STYLE):
        size = (2.1 * columns, 3.0 * len(readings))
        figure, grid = plt.subplots(len(readings), columns, figsize=size, squeeze=False)
        for row, (stream, found) in zip(grid, readings.items(), strict=True):
            for axes, traced in zip(row, trace_readings(policy, list(found), [layer]), strict=True):
                axes.imshow(_draw_square(policy, traced, look, head))
                said = traced.reading.query.groups[0].rollouts[0].text
                said = said.replace("<think>", "").replace("</think>", " ")
                axes.set_xlabel(as_label(textwrap.fill(said, 38)), fontsize=6)
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            row[0].set_ylabel(stream)
        figure.tight_layout()
    plt.close(figure)  # a notebook shows what a cell returns
    return figure


def _draw_square(policy: PreTrainedModel, traced: Traced, look: Look, head: int | None) -> Image.Image:
    query = traced.reading.query
    image = query.sample.open_images()[0]
    drawn = draw_heat(image, heat_of(policy, traced, look, head), query.sample.boxes)
    return ImageOps.pad(drawn, (TILE, TILE), color="white", centering=(0.5, 1.0))


def show_heads(found: Mapping[str, Attention]) -> Figure:
    """Attention inside the gold boxes by layer and head, as a multiple of the boxes' area."""
    with plt.rc_context(STYLE):
        size = (3.4 * len(found), 2.8)
        figure, grid = plt.subplots(1, len(found), figsize=size, squeeze=False, layout="constrained")
        times = [
            np.array([[head.mean for head in heads] for heads in one.heads]) / one.area.mean
            for one in found.values()
        ]
        top = max(2.0, *(part.max() for part in times))
        for axes, stream, part in zip(grid[0], found, times, strict=True):
            image = axes.imshow(part, cmap="PuOr_r", norm=TwoSlopeNorm(1, 0, top), aspect="auto")
            axes.set_title(stream, fontsize=9)
            axes.set(xlabel="head", ylabel="layer")
            axes.set(xticks=range(part.shape[1]), yticks=range(part.shape[0]))
            if part.size <= 64:
                for (layer, head), value in np.ndenumerate(part):
                    axes.text(head, layer, f"{value:.1f}", ha="center", va="center", fontsize=7)
        figure.colorbar(image, ax=grid[0].tolist(), label="share inside / area")
    plt.close(figure)
    return figure


def show_attention(found: Mapping[str, Mapping[str, Attention]]) -> Figure:
    """By stream and look: the share of image attention inside the gold boxes with its interval, beside
    area and chance; and pointing."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(6.4, 3), sharey=True, layout="constrained")
        rows = [(stream, look, one) for stream, looks in found.items() for look, one in looks.items()]
        for y, (stream, _look, one) in enumerate(rows):
            _mark(left, y, one.inside, COLORS[stream], "all heads")
            _mark(left, y, one.best, COLORS[stream], "best head", marker="D")
            left.plot(one.area.mean, y, "|", color="black", ms=14, label="area")
            left.plot(one.chance.mean, y, "x", color=GREY, label="other questions' boxes")
            _mark(right, y, one.pointing, COLORS[stream], "all heads")
            right.plot(one.pointing_chance.mean, y, "|", color="black", ms=14)
        left.set(yticks=range(len(rows)), yticklabels=[f"{stream}, {look}" for stream, look, _ in rows])
        left.set(xlabel="share of image attention in gold boxes", ylim=(len(rows) - 0.5, -0.5))
        right.set(xlabel="pointing game: share of hits")
        figure.legend(*_names(left), loc="outside lower center", ncols=4, fontsize=7)
    plt.close(figure)
    return figure


def show_readouts(
    found: Mapping[str, Mapping[str, Mapping[int, ReadOut]]], baselines: Mapping[str, ReadOut] | None = None
) -> Figure:
    """R² of the box's centre by layer, for each stream and point, with its interval; shuffled labels
    as a band; baselines as lines. found[stream][point][layer]."""
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(1, len(POINTS), figsize=(6.4, 3), sharey=True, layout="constrained")
        for axes, point in zip(grid, POINTS, strict=True):
            for stream, points in found.items():
                layers = points[point]
                shift = 0.06 * (1 if stream == TEXTUAL else -1)
                for layer, one in layers.items():
                    _mark(axes, one.centre, layer + shift, COLORS[stream], stream, upright=True)
                control = [one.control for one in layers.values()]
                low, high = min(c.low for c in control), max(c.high for c in control)
                axes.axhspan(low, high, color=GREY, alpha=0.25, lw=0, label="shuffled labels")
                axes.set(xticks=list(layers))
            for (name, one), dashes in zip((baselines or {}).items(), ("--", ":", "-."), strict=False):
                axes.axhline(one.centre.mean, color="black", lw=1, ls=dashes, label=name)
            axes.set(title=POINTS[point], xlabel="decoder layer")
        grid[0].set(ylabel="R² of the box's centre")
        figure.legend(*_names(grid[0]), loc="outside lower center", ncols=4, fontsize=7)
    plt.close(figure)
    return figure


def show_drops(found: Mapping[str, Causal]) -> Figure:
    """Fall of the log-prob of each text when tokens inside the gold boxes, or as many outside, lose
    what is their own."""
    texts = {"reasoned": "answer, reasoned", "direct": "answer, direct", "reasoning": "the reasoning"}
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(1, len(texts), figsize=(6.8, 2.5), layout="constrained")
        for axes, (name, title) in zip(grid, texts.items(), strict=True):
            for y, (stream, one) in enumerate(found.items()):
                drop = getattr(one, name)
                _mark(axes, y - 0.1, drop.inside, COLORS[stream], "inside the gold boxes")
                _mark(axes, y + 0.1, drop.outside, GREY, "as many tokens outside")
            axes.axvline(0, color="black", lw=0.6)
            axes.set(title=title, xlabel="fall of log-prob, nats", ylim=(len(found) - 0.5, -0.5))
            axes.set(yticks=range(len(found)), yticklabels=list(found) if axes is grid[0] else [])
        figure.legend(*_names(grid[0]), loc="outside lower center", ncols=2, fontsize=7)
    plt.close(figure)
    return figure


def _mark(
    axes: Axes, one: Any, other: Any, color: str, label: str, marker: str = "o", upright: bool = False
) -> None:
    """A mean with its interval, at a height; or at a place along, if upright (value first)."""
    found: Interval = one if upright else other
    place = other if upright else one
    sides = [[found.mean - found.low], [found.high - found.mean]]
    options = {"fmt": marker, "color": color, "ms": 4, "capsize": 2, "label": label}
    if upright:
        axes.errorbar([place], [found.mean], yerr=sides, **options)
    else:
        axes.errorbar([found.mean], [place], xerr=sides, **options)


def _names(axes: Axes) -> tuple[list, list[str]]:
    """Handles and names of a legend, each name once."""
    named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    return list(named.values()), list(named)
