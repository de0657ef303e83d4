"""Figures of the data: samples with their boxes, one box in every family's frame, a query as the
tree that its rollouts share. Needs matplotlib (the extra `notebooks`).

In: samples, a processor, a rolled-out query. Out: matplotlib figures.
"""

import itertools
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from transformers import PreTrainedModel, ProcessorMixin

from ivgr.core.boxes import Box
from ivgr.core.printable import as_label
from ivgr.core.query import Query
from ivgr.core.sample import Sample
from ivgr.models.family import Family
from ivgr.models.registry import FAMILIES
from ivgr.models.tree_attention import visible
from ivgr.packing.prefix_tree import pack_queries, split_tree, tree_length
from ivgr.plotting.charts import COLORS as STREAM_COLORS
from ivgr.plotting.pictures import COLORS

IMAGE, QUESTION = "#d9a441", "#5a5a5a"


def draw_gallery(samples: Sequence[Sample], columns: int = 4) -> Figure:
    """Each sample's first image with its gold boxes and labels; question and answer above."""
    rows = -(-len(samples) // columns)
    figure = make_figure(columns * 2.2, rows * 2.6)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel in panels:
        panel.set_axis_off()
    for panel, sample in zip(panels, samples, strict=False):
        if sample.images:
            panel.imshow(sample.open_images()[0])
        for index, box in enumerate(sample.boxes):
            outline(panel, box, COLORS[index % len(COLORS)], sample.labels[index] if sample.labels else "")
        title = "\n".join(textwrap.wrap(sample.question, 28)[:3])
        panel.set_title(as_label(f"{title}\n→ {sample.answer}  ({sample.kind})"), fontsize=8, loc="left")
    return figure


def draw_frames(sample: Sample, processor: ProcessorMixin) -> Figure:
    """The sample's first image as every known family sees it: axes in the family's frame, a grid of
    its image tokens, and the gold boxes as the model would have to write them."""
    figure = make_figure(3.3 * len(FAMILIES), 3.1)
    image = sample.open_images()[0]
    for panel, family in zip(figure.subplots(1, len(FAMILIES)), FAMILIES.values(), strict=True):
        resized = _resize(family, processor, sample)
        frame = family.frame(resized)
        panel.imshow(image, extent=(0, frame.width, frame.height, 0), aspect=image.height / image.width)
        panel.set_aspect(image.height / image.width * frame.width / frame.height)
        token = family.patch * family.merge
        panel.set_xticks(np.arange(0, resized[0], token) * frame.width / resized[0], minor=True)
        panel.set_yticks(np.arange(0, resized[1], token) * frame.height / resized[1], minor=True)
        panel.grid(which="minor", color="white", lw=0.5, alpha=0.6)
        boxes = [frame.from_pixels(box, image.size) for box in sample.boxes]
        for index, box in enumerate(boxes):
            outline(panel, box, COLORS[index % len(COLORS)])
        written = "\n".join(f"<box>[{','.join(f'{c:.0f}' for c in box)}]</box>" for box in boxes)
        panel.set_title(f"{family.name}, {resized[0]} x {resized[1]} pixels\n{written}", fontsize=8)
        panel.tick_params(which="both", labelsize=7)
        panel.tick_params(which="minor", length=0)
    return figure


def _resize(family: Family, processor: ProcessorMixin, sample: Sample) -> tuple[int, int]:
    """Width and height to which the family's own processor brings the first image."""
    template: Any = processor.chat_template
    own = family.build_processor(processor.tokenizer, template).image_processor
    _, height, width = own(images=sample.open_images()[:1], return_tensors="pt")["image_grid_thw"][0].tolist()
    return width * family.patch, height * family.patch


def draw_tree(model: PreTrainedModel, query: Query) -> Figure:
    """Draws which tokens attend to which in the forward pass of a rolled-out query: one row per token,
    coloured where it attends; the title says what the same rollouts cost separately."""
    (pack,) = pack_queries(model, [query], sys.maxsize, join=False)
    seen = visible(pack.reach.cpu())[0].numpy()
    nodes = _nodes(query, int(model.config.image_token_id))
    colors = np.array([to_rgb(color) for color, _, length in nodes for _ in range(length)])
    shades = np.array(
        [(0.55 if n % 2 else 1.0) for n, (_, _, length) in enumerate(nodes) for _ in range(length)]
    )
    picture = np.where(seen[..., None], 1 - (1 - colors) * shades[:, None], 1.0)
    figure = make_figure(5.2, 5.2)
    panel = figure.subplots()
    panel.imshow(picture, interpolation="nearest")
    alone = sum(tree_length(row) for row in split_tree(query, 0))
    panel.set_title(f"one row of {len(seen)} tokens; rollouts one by one: {alone} tokens", fontsize=9)
    panel.set_xlabel("token that is seen", fontsize=8)
    panel.set_ylabel("token that sees", fontsize=8)
    panel.tick_params(labelsize=7)
    named = {name: color for color, name, _ in nodes}
    handles = [Patch(color=color, label=name) for name, color in named.items()]
    panel.legend(handles=handles, loc="upper right", frameon=False, fontsize=8)
    return figure


def _nodes(query: Query, image_token: int) -> list[tuple[str, str, int]]:
    """Colour, name and length of each run of tokens in tree order."""
    kinds = (query.prefix == image_token).int()
    starts = [0, *(kinds.diff().nonzero()[:, 0] + 1).tolist(), len(kinds)]
    runs = [
        (IMAGE, "image", end - start) if kinds[start] else (QUESTION, "chat and question", end - start)
        for start, end in itertools.pairwise(starts)
    ]
    for group in query.groups:
        color, name = STREAM_COLORS[group.stream], group.stream
        runs.append((color, f"{name}: instruction and rollouts", len(group.instruction)))
        runs += [(color, f"{name}: instruction and rollouts", len(r.tokens)) for r in group.rollouts]
    return runs


def outline(panel: Axes, box: Box, color: str, label: str = "", width: float = 1.8) -> None:
    """A box (x1, y1, x2, y2) in the panel's own units, white-edged to be seen on anything."""
    corner, sides = (box[0], box[1]), (box[2] - box[0], box[3] - box[1])
    panel.add_patch(Rectangle(corner, *sides, fill=False, ec="white", lw=width + 1.6))
    panel.add_patch(Rectangle(corner, *sides, fill=False, ec=color, lw=width))
    if label:
        _write_label(panel, box, color, label)


def _write_label(panel: Axes, box: Box, color: str, label: str) -> None:
    """At the box, on the side where there is room within the picture."""
    (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
    high, far = box[1] - top < 0.1 * (bottom - top), box[2] - left > 0.6 * (right - left)
    x, align = (box[2], "right") if far else (box[0], "left")
    y, stand = (box[3], "top") if high else (box[1], "bottom")
    ground = {"facecolor": "white", "alpha": 0.75, "pad": 0.6, "edgecolor": "none"}
    panel.text(x, y, as_label(label), color=color, fontsize=6.5, ha=align, va=stand, bbox=ground)


def make_figure(width: float, height: float) -> Figure:
    """An empty figure, inches."""
    return Figure(figsize=(width, height), layout="constrained", dpi=110)
