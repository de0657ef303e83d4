"""TensorBoard's HPARAMS tab: a run's settings beside its held-out figures, so that runs under one
folder compare.

They lie in a sub-run of their own, held_out/: TensorBoard then finds out by itself which settings
differ, and offers these figures, not every scalar of the run, to compare by.
"""

import json
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from ivgr.callbacks.tensorboard import writer_of

SECTIONS = ("seed_everything", "model", "data")
FOLDER = "held_out"


class Hyperparameters(L.Callback):
    """Enters the run's settings when training starts, and that it has come to its end.

    Args:
        config: The resolved configuration, as YAML text: one mapping, of the subcommand.
    """

    def __init__(self, config: str) -> None:
        self.settings = flat_settings(next(iter(yaml.safe_load(config).values())))

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._enter(trainer, 1)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._enter(trainer, 2)

    def _enter(self, trainer: L.Trainer, which: int) -> None:
        """Of (what is compared, the settings, the end) the one with that index."""
        if (folder := held_out_folder(trainer)) is not None:
            with SummaryWriter(folder) as writer:
                writer.file_writer.add_summary(hparams(self.settings, {})[which])


def enter_figures(trainer: L.Trainer, figures: dict[str, dict[str, float]], iteration: int) -> None:
    """Held-out figures of each stream, for the charts and beside the settings."""
    folder = held_out_folder(trainer)
    if folder is None:
        return
    with SummaryWriter(folder) as writer:
        for stream, values in figures.items():
            for name, value in values.items():
                writer_of(trainer).add_scalar(f"val/{stream}/{name}", value, iteration)
                writer.add_scalar(f"{stream} {name}", value, iteration)


def held_out_folder(trainer: L.Trainer) -> Path | None:
    """Where the sub-run lies, None on other ranks and without a TensorBoard logger."""
    writer = writer_of(trainer)
    return Path(writer.log_dir) / FOLDER if writer else None


def flat_settings(config: dict[str, Any]) -> dict[str, float | str]:
    """Of the seed, the model and the data: each setting by its name on the command line, such as
    model.update.optimizer.lr; a class is the setting that chooses it. Numbers stay numbers."""
    flat: dict[str, float | str] = {}
    for section in SECTIONS:
        _flatten(section, config[section], flat)
    return flat


def _flatten(name: str, value: Any, flat: dict[str, float | str]) -> None:
    if isinstance(value, dict) and value:
        if "class_path" in value:
            flat[name], value = value["class_path"], value.get("init_args", {})
        for key, inner in value.items():
            _flatten(f"{name}.{key}", inner, flat)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        flat[name] = value
    else:
        flat[name] = value if isinstance(value, str) else json.dumps(value)
