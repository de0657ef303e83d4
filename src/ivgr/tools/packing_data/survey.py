"""One pass over shards: what they hold, in counts and histograms of constant size, and a
seeded choice of samples to look at."""

import io
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import ExifTags, Image
from rich.console import Group
from rich.table import Table

from ivgr.core.errors import UserError
from ivgr.core.printable import as_cell
from ivgr.core.sample import Sample, read_sample
from ivgr.data.shards import read_shards

SIDES = (64, 128, 256, 512, 1024, 2048, 4096)
SHARES = (0.1, 1, 3, 10, 30, 100)
TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
SIDEWAYS = (5, 6, 7, 8)  # values of the EXIF orientation
BAR = 32
MOST_VALUES = 20


@dataclass
class Histogram:
    """counts[i] is of values up to edges[i]; the last of values beyond all."""

    title: str
    edges: tuple[float, ...]
    counts: Counter = field(default_factory=Counter)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.edges, value)] += 1

    def table(self) -> Table:
        """Returns one row per bin, with a bar; empty bins at both ends are left out."""
        table = Table(self.title, "", "", box=None)
        names = [f"≤ {edge:g}" for edge in self.edges] + [f"> {self.edges[-1]:g}"]
        used = [index for index in range(len(names)) if self.counts[index]]
        for index in range(min(used), max(used) + 1) if used else ():
            bar = "█" * round(BAR * self.counts[index] / max(self.counts.values()))
            table.add_row(names[index], str(self.counts[index]), bar)
        return table


@dataclass
class Survey:
    """The result of `survey_shards`; chosen holds samples drawn with equal probability."""

    shards: dict[str, Counter] = field(default_factory=dict)
    values: dict[str, Counter] = field(default_factory=dict)
    sides: Histogram = field(default_factory=lambda: Histogram("longer side of images, pixels", SIDES))
    shares: Histogram = field(default_factory=lambda: Histogram("area of boxes, % of the image", SHARES))
    chosen: list[Sample] = field(default_factory=list)

    def add(self, shard: str, sample: Sample) -> None:
        self.shards.setdefault(shard, Counter())[sample.kind] += 1
        found = {"kind": sample.kind, "check": sample.check, "source": sample.source or "(none)"}
        found |= {"images": str(len(sample.images)), "boxes": str(len(sample.boxes))}
        for name, value in found.items():
            self.values.setdefault(name, Counter())[value] += 1
        sizes = [upright_size(data, sample.id) for data in sample.images]
        for size in sizes:
            self.sides.add(max(size))
        for x1, y1, x2, y2 in sample.boxes:
            self.shares.add(100 * (x2 - x1) * (y2 - y1) / (sizes[0][0] * sizes[0][1]))

    def tables(self) -> Group:
        values = map(self._value_table, self.values)
        return Group(self._shard_table(), *values, self.sides.table(), self.shares.table())

    def _shard_table(self) -> Table:
        table = Table("shard", "samples", "paired", "single")
        for name, kinds in self.shards.items():
            table.add_row(as_cell(name), *map(str, (kinds.total(), kinds["paired"], kinds["single"])))
        everything = sum(self.shards.values(), Counter())
        table.add_row("all", *map(str, (everything.total(), everything["paired"], everything["single"])))
        return table

    def _value_table(self, name: str) -> Table:
        table = Table(name, "samples", box=None)
        for value, count in self.values[name].most_common(MOST_VALUES):
            table.add_row(as_cell(value), str(count))
        if len(self.values[name]) > MOST_VALUES:
            table.add_row(f"{len(self.values[name]) - MOST_VALUES} others", "")
        return table


def survey_shards(shards: list[str], choose: int, seed: int = 0) -> Survey:
    """Reads every sample once, image headers alone; holds at most `choose` samples. UserError
    names what is broken."""
    survey, rng = Survey(), random.Random(seed)
    for index, (shard, sample) in enumerate(_samples(shards)):
        survey.add(shard, sample)
        if index < choose:
            survey.chosen.append(sample)
        elif (slot := rng.randrange(index + 1)) < choose:
            survey.chosen[slot] = sample
    rng.shuffle(survey.chosen)
    return survey


def _samples(shards: list[str]) -> Iterator[tuple[str, Sample]]:
    for shard in shards:
        for entry in read_shards([shard]):
            yield Path(shard).name, read_sample(entry)


def upright_size(data: bytes, id: str) -> tuple[int, int]:
    """Width and height as seen, from the header alone; UserError names sample `id`."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
            return (image.height, image.width) if turned else image.size
    except Exception as error:
        # Decoders of broken files raise whatever they like.
        reason = type(error).__name__
        raise UserError(f"sample {id}: an image cannot be read ({reason}); replace or remove it") from error
