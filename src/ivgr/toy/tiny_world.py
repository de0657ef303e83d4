"""The tiny world as data: drawn on first use, then read like any other shards."""

from pathlib import Path

from ivgr.core.settings import PositiveInt, Seed, checked
from ivgr.data.datamodule import ShardDataModule
from ivgr.toy.place_accuracy import PlaceAccuracy
from ivgr.toy.world import Split, World, write_world


@checked("data.")
class TinyWorld(ShardDataModule):
    """The tiny world's shards, drawn on first use under trainer.default_root_dir/world.

    Args:
        train_count: Scenes drawn for training.
        val_count: Scenes drawn for evaluation.
        world_seed: Seed of the drawing; independent of the run's seed.
        settings: Arguments of `ShardDataModule` other than train and val.
    """

    def __init__(
        self, train_count: PositiveInt = 2000, val_count: PositiveInt = 640, world_seed: Seed = 0, **settings
    ) -> None:
        super().__init__(train="", val="", **settings)
        self.validation_metrics = (PlaceAccuracy(), *self.validation_metrics)
        self.counts: dict[Split, int] = {"train": train_count, "val": val_count}
        self.world_seed = world_seed

    def prepare_data(self) -> None:
        for split, count in self.counts.items():
            write_world(self._folder() / split, World(split, count, self.world_seed))

    def setup(self, stage: str) -> None:
        self.train = str(self._folder() / "train")
        self.val = str(self._folder() / "val")
        super().setup(stage)

    def _folder(self) -> Path:
        return Path(self.trainer.default_root_dir) / "world"
