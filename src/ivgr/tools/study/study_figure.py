"""The study as one figure: one column per measure; above the arms, below the paired differences."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ivgr.core.atomic_files import file_to_write
from ivgr.tools.study.significance import Estimate
from ivgr.tools.study.study_report import Difference, Estimates, Outcome, known
from ivgr.tools.study.variants import ARMS, LOCALIZATION, MEASURES, PAIRS

if TYPE_CHECKING:  # an extra
    from matplotlib.axes import Axes

SHOWN = ("text/accuracy", *LOCALIZATION)
DOT, MEAN, TESTED = "#9aa5b1", "#1f2933", "#c2410c"


def draw(outcomes: Sequence[Outcome], arms: Estimates, differences: Sequence[Difference], path: Path) -> None:
    """Seeds as dots, means with 95 % intervals over them; the tested pair in colour. Writes `path`
    with its suffix replaced by .png and .pdf."""
    from matplotlib.figure import Figure

    present = {(difference.arm, difference.against) for difference in differences}
    rows = [list(reversed(arms)), [pair for pair in reversed(PAIRS) if pair in present]]
    canvas = Figure(figsize=(3 * len(SHOWN), 4.6), layout="constrained")
    shares = [len(rows[0]), max(len(rows[1]), 1)]
    axes = canvas.subplots(2, len(SHOWN), sharey="row", height_ratios=shares)
    for column, measure in enumerate(SHOWN):
        _draw_arms(axes[0, column], rows[0], measure, outcomes, arms)
        _draw_differences(axes[1, column], rows[1], [d for d in differences if d.measure == measure])
        axes[0, column].set_title(MEASURES[measure], fontsize=10)
    axes[0, 0].set_yticks(range(len(rows[0])), [ARMS[name].title for name in rows[0]])
    labels = [f"{ARMS[arm].title}\n− {ARMS[against].title}" for arm, against in rows[1]]
    axes[1, 0].set_yticks(range(len(rows[1])), labels)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=8)
        one.locator_params(axis="x", nbins=5)
    for suffix in (".png", ".pdf"):
        # Without a date the same results are the same file.
        metadata = {"CreationDate": None} if suffix == ".pdf" else None
        with file_to_write(path.with_suffix(suffix)) as file:
            canvas.savefig(file, format=suffix[1:], dpi=200, metadata=metadata)


def _draw_arms(
    axes: "Axes", names: list[str], measure: str, outcomes: Sequence[Outcome], arms: Estimates
) -> None:
    for height, name in enumerate(names):
        values = known(measure, [one for one in outcomes if one.arm == name])
        _draw_line(axes, height, values, arms[name][measure], TESTED if name in PAIRS[0] else MEAN)
    if "cold" in arms:
        axes.axvline(arms["cold"][measure].mean, color=DOT, linewidth=0.8, linestyle=":")


def _draw_differences(axes: "Axes", pairs: list[tuple[str, str]], found: Sequence[Difference]) -> None:
    axes.axvline(0, color=DOT, linewidth=0.8, linestyle=":")
    for difference in found:
        pair = (difference.arm, difference.against)
        height = pairs.index(pair)
        _draw_line(axes, height, difference.values, difference.estimate, TESTED if pair == PAIRS[0] else MEAN)
        if difference.adjusted is not None:
            text, at = f"p = {difference.adjusted:.2g} (Holm)", (difference.estimate.mean, height + 0.28)
            axes.annotate(text, at, ha="center", va="bottom", fontsize=7, color=TESTED)
    axes.set_ylim(-0.6, max(len(pairs), 1) - 0.3)


def _draw_line(axes: "Axes", height: int, values: list[float], found: Estimate, color: str) -> None:
    if found.count <= 1:
        axes.plot(values, [height] * len(values), "o", color=color, markersize=5)
        return
    axes.plot(values, [height] * len(values), "o", color=DOT, markersize=3, alpha=0.6, zorder=1)
    reach = [[found.mean - found.low], [found.high - found.mean]]
    axes.errorbar([found.mean], [height], xerr=reach, fmt="D", color=color, markersize=4, capsize=3, zorder=2)
