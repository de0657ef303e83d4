"""TensorBoard's side of the writer: a run is a folder of event files, each stream a sub-run below it."""

import io
import time
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import numpy as np
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.scalar import metadata as scalar_metadata
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from ivgr.core.atomic_files import part_of, publish
from ivgr.plotting.tags import Name, describe

ONE = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])


class Logger(TensorBoardLogger):
    """Lightning's, whose hparams.yaml appears whole or not at all."""

    @rank_zero_only
    def save(self) -> None:
        path = Path(self.log_dir) / self.NAME_HPARAMS_FILE
        if path.parent.is_dir() and not path.is_file():
            save_hparams_to_yaml(part_of(path), self.hparams)
            publish(part_of(path), path)
        super().save()


class EventFiles:
    """Writes a TensorBoardLogger's run and its sub-runs, LOG_DIR/STREAM. TensorBoard colours charts by run,
    so that streams under one tag have colours of their own. Every tag has a description."""

    def __init__(self, logger: TensorBoardLogger) -> None:
        self.logger = logger
        self.files: dict[str | None, EventFileWriter] = {}
        self.described: set[Name] = set()

    def scalars(self, values: dict[Name, float], step: int) -> None:
        """One event per run."""
        for run in dict.fromkeys(name.stream for name in values):
            found = {name: value for name, value in values.items() if name.stream == run}
            summary = self._describe(found, scalar_metadata)
            for name, value in found.items():
                summary.value.add(tag=name.tag, simple_value=value)
            self.add(summary, step, run)

    def text(self, name: Name, markdown: str, step: int) -> None:
        said = markdown.encode(errors="backslashreplace")
        tensor = TensorProto(dtype="DT_STRING", string_val=[said], tensor_shape=ONE)
        metadata = text_metadata.create_summary_metadata("", describe(name.tag))
        value = Summary.Value(tag=name.tag, tensor=tensor, metadata=metadata)
        self.add(Summary(value=[value]), step, name.stream)

    def picture(self, name: Name, picture: np.ndarray, caption: str, step: int) -> None:
        """TensorBoard has no captions: it is drawn into those pictures that need one."""
        png = io.BytesIO()
        Image.fromarray(picture).save(png, "PNG")
        height, width, _ = picture.shape
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png.getvalue())
        summary = self._describe([name], image_metadata)
        summary.value.add(tag=name.tag, image=image)
        self.add(summary, step, name.stream)

    def add(self, summary: Summary, step: int = 0, run: str | None = None) -> None:
        self._file(run).add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def _file(self, run: str | None) -> EventFileWriter:
        """The logger's own for the whole run, while it is open."""
        if run is None and (own := self.logger.experiment.file_writer) is not None:
            return own.event_writer
        if run not in self.files:
            self.files[run] = EventFileWriter(str(Path(self.logger.log_dir) / (run or "")))
        return self.files[run]

    def flush(self) -> None:
        self.logger.experiment.flush()
        for file in self.files.values():
            file.flush()

    def close(self) -> None:
        """Closes the sub-runs' event files; what is written afterwards begins new ones. Lightning closes the
        logger's own."""
        while self.files:
            self.files.popitem()[1].close()
        self.described.clear()

    def _describe(self, names: Iterable[Name], plugin: ModuleType) -> Summary:
        """Descriptions of those that are new, as values of their own: TensorBoard's fast loader reads none
        that stands beside a number or a picture."""
        new = [name for name in names if name not in self.described]
        self.described.update(new)
        described = (
            Summary.Value(tag=tag, metadata=plugin.create_summary_metadata("", describe(tag)))
            for tag, _ in new
        )
        return Summary(value=described)
