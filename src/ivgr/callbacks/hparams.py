"""TensorBoard's HPARAMS tab: a run's settings beside its held-out figures, so that runs under one
folder compare.

They lie in a sub-run of their own, held_out/: TensorBoard then finds out by itself which settings
differ, and offers these figures, not every scalar of the run, to compare by.
"""

import json
from typing import Any

import lightning as L
import yaml
from torch.utils.tensorboard.summary import hparams

from ivgr.callbacks.protocol import TrainedModule
from ivgr.callbacks.writer import Writer, writer_of
from ivgr.evaluation.held_out import Figures
from ivgr.plotting.tags import VALIDATION, Name

SECTIONS = ("seed_everything", "model", "data")
RUN = "held_out"


class Hyperparameters(L.Callback):
    """Enters the run's settings when training starts, and that it has come to its end.

    Args:
        config: The resolved configuration, as YAML text: one mapping, of the subcommand.
    """

    def __init__(self, config: str) -> None:
        self.settings = flat_settings(next(iter(yaml.safe_load(config).values())))

    def on_train_start(self, trainer: L.Trainer, module: TrainedModule) -> None:
        self._enter(trainer, 1)

    def on_train_end(self, trainer: L.Trainer, module: TrainedModule) -> None:
        self._enter(trainer, 2)

    def _enter(self, trainer: L.Trainer, which: int) -> None:
        """Of (what is compared, the settings, the end) the one with that index."""
        writer_of(trainer).summary(hparams(self.settings, {})[which], run=RUN)


def enter_figures(writer: Writer, figures: Figures, iteration: int) -> None:
    """Held-out figures of each stream beside the settings, under the names that checkpoint_best takes."""
    named = {
        Name(f"{VALIDATION}/{stream}/{name}", RUN): value
        for stream, values in figures.items()
        for name, value in values.items()
    }
    writer.tensorboard_scalars(named, iteration)


def flat_settings(config: dict[str, Any]) -> dict[str, float | str]:
    """Returns the seed and each setting of the model and the data by its name on the command line, such as
    model.update.optimizer.lr; a class counts as the setting that chooses it. Numbers stay numbers."""
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
