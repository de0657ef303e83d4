"""One query's two streams side by side. Needs matplotlib (the extra `notebooks`).

In: scored queries with advantages. Out: matplotlib figures and an HTML table.
"""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ivgr.core.boxes import parse_boxes
from ivgr.core.printable import as_html, as_label
from ivgr.core.prompts import GROUNDED
from ivgr.core.query import Group, Query, Rollout
from ivgr.plotting.charts import COLORS
from ivgr.plotting.data_figures import make_figure, outline
from ivgr.plotting.pictures import GOLD

TERMS = {
    "format": "#c3c9cf",
    "accuracy": "#5b8e7d",
    "box": COLORS[GROUNDED],
    "validity": "#d9a441",
    "consistency": COLORS["textual"],
}
OTHER = "#8f6bb1"  # terms of a user's own


def draw_rollouts(query: Query, weights: dict[str, dict[str, float]]) -> Figure:
    """The image with the gold boxes and every grounded rollout's; then a panel a stream, in which
    each rollout is a bar of its weighted reward terms with its advantage behind it. `weights` is
    `Rewards.weights`."""
    figure = make_figure(3.2 * (1 + len(query.groups)), 2.9)
    picture, *panels = figure.subplots(1, 1 + len(query.groups))
    _draw_boxes(picture, query)
    for panel, group in zip(panels, query.groups, strict=True):
        _draw_bars(panel, group, {name: weight for name, weight in weights[group.stream].items() if weight})
    figure.suptitle(as_label(f"{query.sample.question}  → {query.sample.answer}"), fontsize=10)
    return figure


def _draw_boxes(panel: Axes, query: Query) -> None:
    panel.set_axis_off()
    if not query.sample.images:
        return
    image = query.sample.open_images()[0]
    panel.imshow(image)
    grounded = query.group(GROUNDED)
    for rollout in grounded.rollouts if grounded else ():
        for box in parse_boxes(rollout.text):
            outline(panel, query.frame.to_pixels(box, image.size), COLORS[GROUNDED], width=0.8)
    for box in query.boxes:
        outline(panel, query.frame.to_pixels(box, image.size), GOLD, width=2.2)
    panel.set_title("gold green, written red", fontsize=9)


def _draw_bars(panel: Axes, group: Group, weights: dict[str, float]) -> None:
    top = sum(weights.values())
    for place, rollout in enumerate(group.rollouts):
        left = 0.0
        for name, weight in weights.items():
            width = weight * rollout.terms.get(name, 0.0)
            panel.barh(
                place, width, left=left, color=TERMS.get(name, OTHER), label=name if place == 0 else None
            )
            left += width
        panel.text(top * 1.03, place, f"{rollout.advantage:+.2f}", va="center", fontsize=8)
    panel.set(xlim=(0, top * 1.3), ylim=(len(group.rollouts) - 0.4, -0.6))
    panel.set_xticks(range(int(top) + 1))
    panel.set_yticks(range(len(group.rollouts)), [str(n + 1) for n in range(len(group.rollouts))])
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_title(f"{group.stream}: reward, and advantage", fontsize=9, color=COLORS[group.stream])
    panel.legend(frameon=False, fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.08))


def rollouts_table(query: Query) -> str:
    """HTML: one row per rollout, one column per stream; below each text its terms before weighting, its
    reward and its advantage. Model text is escaped."""
    heads = "".join(f"<th>{group.stream}</th>" for group in query.groups)
    count = max(len(group.rollouts) for group in query.groups)
    rows = [
        "".join(
            _cell(group.rollouts[n]) if n < len(group.rollouts) else "<td></td>" for group in query.groups
        )
        for n in range(count)
    ]
    body = "".join(f"<tr><th>{n + 1}</th>{row}</tr>" for n, row in enumerate(rows))
    return f"<table><tr><th></th>{heads}</tr>{body}</table>"


def _cell(rollout: Rollout) -> str:
    terms = " · ".join(f"{name} {value:.2f}" for name, value in rollout.terms.items())
    reward = "unknown" if rollout.reward is None else f"{rollout.reward:.2f}"
    figures = f"{terms} → reward {reward}, advantage {rollout.advantage:+.2f}"
    return f'<td style="text-align:left">{as_html(rollout.text)}<br><small>{figures}</small></td>'
