"""The logging of an iteration: every metric of every iteration, and every few iterations the completions of
all streams and pictures with gold and predicted boxes."""

from typing import Any

import lightning as L
import numpy as np

from ivgr.callbacks.protocol import RLModule, TrainedModule
from ivgr.callbacks.writer import Writer, writer_of
from ivgr.core.boxes import parse_boxes
from ivgr.core.lightning_private import finished_iterations
from ivgr.core.printable import as_markdown, in_line
from ivgr.core.prompts import GROUNDED
from ivgr.core.query import Group, Query, Rollout
from ivgr.core.response import read_answer
from ivgr.data.encode import Batch
from ivgr.plotting.boxed_picture import boxed_picture
from ivgr.plotting.chart_layout import layout_summary
from ivgr.plotting.share_stack import NAMES, paint_shares, shares_of
from ivgr.plotting.tags import name_of
from ivgr.rewards.box_terms import box_reward

LEGEND = "gold boxes: yellow on black; predicted: purple on white"
LONGEST = 200  # characters of a question or an answer in a caption


class MetricsLogger(L.Callback):
    """Scalars at every iteration; text and images every `every` iterations.

    Args:
        every: Iterations between two completions tables.
        queries: Queries shown in each.
    """

    # The shape of what a checkpoint keeps.
    state_shape = {"shares": [(float,) * len(NAMES)]}

    @property
    def state_key(self) -> str:
        """Under which checkpoints have always kept it; not the name of the class, which may change."""
        return "Board"

    def __init__(self, every: int = 10, queries: int = 4) -> None:
        self.every = every
        self.queries = queries
        self.shares: list[list[float]] = []

    def on_train_start(self, trainer: L.Trainer, module: RLModule) -> None:
        writer_of(trainer).summary(layout_summary())

    def on_train_batch_end(
        self, trainer: L.Trainer, module: RLModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        writer, step = writer_of(trainer), module.iteration
        write_metrics(writer, module.metrics, step)
        if shares := shares_of(module.metrics):
            self.shares.append(shares)
        if step % self.every == 0 or step == 1:
            self._show(writer, [q for q in batch.queries if q.group(GROUNDED)][: self.queries], step)
        writer.flush()  # so that it is seen while the run goes on

    def _show(self, writer: Writer, queries: list[Query], step: int) -> None:
        writer.text("rollout/completions", completions_table(queries), step)
        pictured = [query for query in queries if query.sample.images]
        for number, query in enumerate(pictured, 1):
            picture, caption = draw_query(query)
            writer.picture(f"rollout/boxes/{number}", picture, step, GROUNDED, caption)
        if self.shares:
            writer.picture("reward_consistency/shares", paint_shares(self.shares), step)

    def on_exception(self, trainer: L.Trainer, module: RLModule, exception: BaseException) -> None:
        writer_of(trainer).flush()

    def teardown(self, trainer: L.Trainer, module: RLModule, stage: str) -> None:
        writer_of(trainer).close()

    def state_dict(self) -> dict:
        return {"shares": self.shares}

    def load_state_dict(self, state: dict) -> None:
        self.shares = state["shares"]


class ColdStartMetrics(L.Callback):
    """The metrics of every trainer.log_every_n_steps-th step of a cold start."""

    def on_train_batch_end(
        self, trainer: L.Trainer, module: TrainedModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = finished_iterations(trainer)
        if step % trainer.log_every_n_steps == 0:
            writer = writer_of(trainer)
            write_metrics(writer, module.metrics, step)
            writer.flush()

    def on_exception(self, trainer: L.Trainer, module: TrainedModule, exception: BaseException) -> None:
        writer_of(trainer).flush()

    def teardown(self, trainer: L.Trainer, module: TrainedModule, stage: str) -> None:
        writer_of(trainer).close()


def write_metrics(writer: Writer, metrics: dict[str, float], step: int) -> None:
    """Under their tags, by stream."""
    writer.scalars({name_of(metric): value for metric, value in metrics.items()}, step)


def completions_table(queries: list[Query]) -> str:
    """A Markdown table of the best and worst rollout of every group (the first, where no
    reward is known), with the reward's terms before weighting; model text escaped."""
    rows = ["| query | rollout | completion |", "| --- | --- | --- |"]
    for query in queries:
        for group in query.groups:
            ranked = ranked_rollouts(group)
            for rollout in (ranked[0], ranked[-1]):
                said = (query.sample.question, rollout.text)
                question, completion = map(as_markdown, said)
                rows.append(f"| {question} | {_itemise(group, rollout)} | {completion} |")
    return "\n".join(rows)


def _itemise(group: Group, rollout: Rollout) -> str:
    reward = "unknown" if rollout.reward is None else f"{rollout.reward:.2f}"
    terms = ", ".join(f"{name} {value:.2g}" for name, value in rollout.terms.items())
    return f"{group.stream}: reward {reward}, advantage {rollout.advantage:+.2f}<br>{terms}"


def ranked_rollouts(group: Group) -> list[Rollout]:
    """Returns the rollouts whose reward is known, best first; all of them, in order, if none is known."""
    known = [(rollout.reward, rollout) for rollout in group.rollouts if rollout.reward is not None]
    return [rollout for _, rollout in sorted(known, key=lambda pair: -pair[0])] or group.rollouts


def draw_query(query: Query) -> tuple[np.ndarray, str]:
    """The query's first image with gold boxes and those of the best grounded rollout, which the caption
    below it is about, (height, width, 3) uint8; and the caption."""
    image = query.sample.open_images()[0]
    group = query.group(GROUNDED)
    assert group is not None, "only queries with a grounded group are drawn"
    best = ranked_rollouts(group)[0]
    gold, predicted = (
        [query.frame.to_pixels(box, image.size) for box in boxes]
        for boxes in (query.boxes, parse_boxes(best.text))
    )
    caption = caption_of(query, group, best)
    return np.asarray(boxed_picture(image, gold, predicted, [*caption, LEGEND])), " · ".join(caption)


def caption_of(query: Query, group: Group, rollout: Rollout) -> list[str]:
    """Stream and IoU (R_box), question, answers."""
    answer = read_answer(rollout.text) or "none in the answer block"
    return [
        f"{group.stream}, IoU {box_reward(rollout.text, query.boxes):.2f}",
        f"question: {in_line(query.sample.question, LONGEST)}",
        f"answer: {in_line(answer, LONGEST)} (gold: {in_line(query.sample.answer, LONGEST)})",
    ]
