"""TensorBoard's HPARAMS tab: a run's settings beside its last held-out figures, so that runs
under one folder compare."""

import json
from typing import Any

import lightning as L
import yaml
from torch.utils.tensorboard.summary import hparams

from ivgr.evaluation.held_out import FIGURES
from ivgr.watch.board import writer_of

SECTIONS = ("seed_everything", "model", "data")
METRICS = [f"val/{stream}/{name}" for stream, names in FIGURES.items() for name in names]


class Hyperparameters(L.Callback):
    """Enters the run when training starts, and that it has come to its end.

    Args:
        config: The resolved configuration, as YAML text: one mapping, of the subcommand.
    """

    def __init__(self, config: str) -> None:
        self.settings = flat_settings(next(iter(yaml.safe_load(config).values())))

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._enter(trainer, slice(0, 2))

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._enter(trainer, slice(2, 3))

    def _enter(self, trainer: L.Trainer, which: slice) -> None:
        """Some of: what is compared, this run's settings, the end."""
        writer = writer_of(trainer)
        for summary in hparams(self.settings, dict.fromkeys(METRICS, 0.0))[which] if writer else ():
            writer.file_writer.add_summary(summary)


def flat_settings(config: dict[str, Any]) -> dict[str, float | str]:
    """Of the seed, the model and the data: each setting by its name on the command line, such as
    model.optimizer.lr; a class is the setting that chooses it. Numbers stay numbers."""
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
