"""Watching localization while training: the light probes on a fixed held-out set, per stream, as
scalars and heat maps."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np

from ivgr.callbacks.protocol import RLModule
from ivgr.callbacks.writer import writer_of
from ivgr.core.errors import UserError
from ivgr.core.printable import in_line
from ivgr.core.prompts import GROUNDED, PAIRED, TEXTUAL
from ivgr.core.sample import Sample
from ivgr.core.settings import NonNegativeInt, PositiveInt, checked
from ivgr.data.encode import encode_batch
from ivgr.data.shards import find_shards
from ivgr.data.validation_stream import HeldOut
from ivgr.plotting.tags import name_of
from ivgr.tools.probes.annotated_response import respond
from ivgr.tools.probes.heatmap import draw_readings
from ivgr.tools.probes.measures import measure_readings
from ivgr.tools.probes.trace import BUDGET

SIDE = 512  # of a heat map, in pixels


@checked("Probing: ")
class Probing(L.Callback):
    """Measures before the first iteration and then every `every` iterations. All ranks measure the
    same, so that sharded weights are gathered alike; the first one writes. No random stream is
    touched: the run stays what it would have been.

    Args:
        every: Iterations between two measurements.
        count: Samples: the first paired ones of data.val.
        streams: Streams to measure, of grounded and textual.
        pictures: Heat maps drawn of each stream's first samples; 0 draws none.
        layer: Decoder layer of read-outs and heat maps, counted from 0; null takes the one three
            quarters of the way up.
        budget: Padded tokens a forward pass.
    """

    def __init__(
        self,
        every: PositiveInt = 10,
        count: PositiveInt = 128,
        streams: Sequence[str] = (TEXTUAL, GROUNDED),
        pictures: NonNegativeInt = 4,
        layer: NonNegativeInt | None = None,
        budget: PositiveInt = BUDGET,
    ) -> None:
        if not streams or not set(streams) <= set(PAIRED):
            raise UserError(f"Probing: streams is {list(streams)}, must be some of {', '.join(PAIRED)}")
        self.every = every
        self.count = count
        self.streams = tuple(streams)
        self.pictures = pictures
        self.layer = layer
        self.budget = budget

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if getattr(module, "kind", None) != "rl":
            raise UserError(f"Probing: {type(module).__name__} has no iterations; take ivgr.IVGR")
        if getattr(trainer.strategy, "rollout_tensor_parallel", 1) > 1:
            raise UserError(
                "Probing: reads the heads of whole layers, which trainer.strategy.rollout_tensor_parallel "
                "splits; set that to 1, or remove the callback"
            )

    def on_train_start(self, trainer: L.Trainer, module: RLModule) -> None:
        self.samples = self._choose(trainer, module)
        if module.iteration == 0:
            self._measure(trainer, module)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: RLModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if module.iteration % self.every == 0:
            self._measure(trainer, module)

    def _choose(self, trainer: L.Trainer, module: RLModule) -> list[Sample]:
        """Chooses the samples, the same on all ranks; UserError if none of them has anything to measure."""
        data = trainer.datamodule
        shards = find_shards(data.val, data.allow_pipe)
        drawn = next(iter(HeldOut(shards, self.count, self.count, 0, 1)), [])
        samples = [query.sample for query in encode_batch(drawn, module.encoder, self.streams).queries]
        if not any(sample.images and sample.labels for sample in samples):
            raise UserError(
                f"Probing: none of the first {self.count} paired samples of data.val has an image, boxes "
                'and "labels"; add labels (see `ivgr pack`), or remove the callback'
            )
        return samples

    def _measure(self, trainer: L.Trainer, module: RLModule) -> None:
        writer, step, policy = writer_of(trainer), module.iteration, module.rollout_policy()
        for stream in self.streams:
            readings = respond(policy, module.encoder, module.engine, self.samples, stream)
            found = measure_readings(policy, module.encoder, readings, stream, self.layer, self.budget)
            shown = [reading for reading in readings if reading.query.sample.images][: self.pictures]
            strip = draw_readings(policy, shown, "place", found.layer, SIDE) if shown else np.zeros((0, 0, 3))
            writer.scalars({name_of(name): value for name, value in found.metrics().items()}, step)
            for number, reading in enumerate(shown):
                picture = strip[:, number * SIDE : (number + 1) * SIDE]
                caption = f"{stream} · {in_line(reading.query.sample.question)}"
                writer.picture(f"probe/attention/{number + 1}", picture, step, stream, caption)
        writer.flush()
