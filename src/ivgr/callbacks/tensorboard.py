"""TensorBoard: every metric of every iteration, the charts they are seen in, and now and then the
completions of both streams and pictures with gold and predicted boxes."""

from pathlib import Path

import lightning as L
import numpy as np
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from ivgr.core.atomic_files import part_of, publish
from ivgr.core.boxes import parse_boxes
from ivgr.core.printable import as_markdown
from ivgr.core.prompts import GROUNDED
from ivgr.core.query import Group, Query, Rollout
from ivgr.data.encode import Batch
from ivgr.plotting.chart_layout import layout_summary
from ivgr.plotting.pictures import GOLD, draw_boxes, shrink
from ivgr.plotting.share_stack import LEGEND, NAMES, paint_shares, shares_of

PREDICTED = "#dc2828"
TILE = 280


class Board(L.Callback):
    """Scalars at every iteration; text and images every `every` iterations.

    Args:
        every: Iterations between two completions tables.
        queries: Queries shown in each.
    """

    # The shape of what a checkpoint keeps.
    state_shape = {"shares": [(float,) * len(NAMES)]}

    def __init__(self, every: int = 10, queries: int = 4) -> None:
        self.every, self.queries = every, queries
        self.shares: list[list[float]] = []

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        writer = writer_of(trainer)
        if writer is not None:
            writer.file_writer.add_summary(layout_summary())

    def on_train_batch_end(self, trainer, module, outputs, batch: Batch, batch_idx: int) -> None:
        writer = writer_of(trainer)
        if writer is None:
            return
        step = module.iteration
        for name, value in module.metrics.items():
            writer.add_scalar(name, value, step)
        if shares := shares_of(module.metrics):
            self.shares.append(shares)
        if step % self.every == 0 or step == 1:
            self._show(writer, [q for q in batch.queries if q.group(GROUNDED)][: self.queries], step)

    def _show(self, writer: SummaryWriter, queries: list[Query], step: int) -> None:
        writer.add_text("completions", completions_table(queries), step)
        if any(query.sample.images for query in queries):
            writer.add_image(
                "boxes (green gold, red predicted)", draw_queries(queries), step, dataformats="HWC"
            )
        if self.shares:
            picture = paint_shares(self.shares)
            writer.add_image(f"consistency ({LEGEND})", picture, step, dataformats="HWC")

    def state_dict(self) -> dict:
        return {"shares": self.shares}

    def load_state_dict(self, state: dict) -> None:
        self.shares = state["shares"]


class Logger(TensorBoardLogger):
    """Lightning's, whose hparams.yaml appears whole or not at all."""

    @rank_zero_only
    def save(self) -> None:
        path = Path(self.log_dir) / self.NAME_HPARAMS_FILE
        if path.parent.is_dir() and not path.is_file():
            save_hparams_to_yaml(part_of(path), self.hparams)
            publish(part_of(path), path)
        super().save()


def writer_of(trainer: L.Trainer) -> SummaryWriter | None:
    """What writes the run's event file, None on other ranks and without a TensorBoard logger."""
    experiment = getattr(trainer.logger, "experiment", None)
    return experiment if isinstance(experiment, SummaryWriter) else None


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
    """Those whose reward is known, best first; if there are none, all as they are."""
    known = [rollout for rollout in group.rollouts if rollout.reward is not None]
    return sorted(known, key=lambda rollout: -rollout.reward) or group.rollouts


def draw_queries(queries: list[Query]) -> np.ndarray:
    """The queries' first images side by side with gold boxes and those of the best grounded
    rollout, (TILE, n·TILE, 3) uint8."""
    tiles = [_draw_query(query) for query in queries if query.sample.images]
    return np.concatenate([np.asarray(tile) for tile in tiles], axis=1)


def _draw_query(query: Query) -> Image.Image:
    image = query.sample.open_images()[0]
    group = query.group(GROUNDED)
    best = ranked_rollouts(group)[0]
    tile, picture = Image.new("RGB", (TILE, TILE), "white"), shrink(image, TILE)
    for color, boxes in ((GOLD, query.boxes), (PREDICTED, parse_boxes(best.text))):
        pixels = [query.frame.to_pixels(box, picture.size) for box in boxes]
        draw_boxes(picture, pixels, picture.size, colors=[color])
    tile.paste(picture)
    return tile
