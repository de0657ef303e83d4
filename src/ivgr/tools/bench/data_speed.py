"""How fast images become queries: shards → stream → encoder beside a plain loop of PIL and the
same HF processor over the same images.

In: how many images, of which size. Out: images per second of both, taken turn about.
"""

import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info
from transformers import ProcessorMixin

from ivgr.core.atomic_files import write_json
from ivgr.core.errors import UserError
from ivgr.core.prompts import Prompts
from ivgr.core.sample import Sample
from ivgr.core.settings import NonNegativeInt, PositiveInt, checked
from ivgr.data.dataloader import make_loader
from ivgr.data.encode import QueryEncoder, encode_batch
from ivgr.data.shards import write_shards
from ivgr.data.stream import BatchComposition, SampleStream, WeightedSource
from ivgr.models.pretrained import Pretrained

PAIRED, SINGLE = 9, 2  # queries of 20 prompts at data.paired_ratio 0.9
BATCH = PAIRED + SINGLE
SHUFFLE = 100


@dataclass(frozen=True)
class DataFigures:
    """Images per second (medians), and the share of time that the pipeline adds (the median over
    rounds of ours / plain, less one)."""

    plain: float
    ours: float
    overhead: float


@checked("bench data: --")
def data(
    images: PositiveInt = 110,
    size: str = "1024x768",
    workers: NonNegativeInt = 0,
    repeats: PositiveInt = 7,
    json: Path | None = None,
) -> None:
    """Time reading, decoding and processing of images beside plain PIL and the HF processor.

    Args:
        images: Images a round, rounded up to whole iterations.
        size: WIDTHxHEIGHT of the JPEGs.
        workers: Reader processes, for both.
        repeats: Rounds; medians are reported.
        json: File for the figures.
    """
    width, _, height = size.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UserError(f"bench data --size is {size!r}, must be WIDTHxHEIGHT, such as 1024x768")
    figures = time_data(images, (int(width), int(height)), workers, repeats)
    print(f"plain PIL and processor: {figures.plain:.1f} images/s")
    print(f"shards, stream, encoder: {figures.ours:.1f} images/s, {figures.overhead:+.1%} time")
    if json is not None:
        setting = {"images": images, "size": size, "workers": workers, "repeats": repeats}
        write_json(json, {"setting": setting, **asdict(figures)})


def time_data(images: int, size: tuple[int, int], workers: int, repeats: int) -> DataFigures:
    """Both contenders over the same JPEGs; a first round of each warms up."""
    batches = -(-images // BATCH)
    with tempfile.TemporaryDirectory() as folder:
        jpegs = list(draw_jpegs(batches * BATCH, size))
        contenders = data_contenders(Path(folder), jpegs, workers)
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(repeats + 1):
            for name, loader in contenders.items():
                start = time.perf_counter()
                for _ in itertools.islice(loader, batches):
                    pass
                seconds[name].append(time.perf_counter() - start)
    plain, ours = seconds["plain"][1:], seconds["ours"][1:]
    ratios = [own / other for own, other in zip(ours, plain, strict=True)]
    count = batches * BATCH
    return DataFigures(
        count / statistics.median(plain), count / statistics.median(ours), statistics.median(ratios) - 1
    )


def data_contenders(folder: Path, jpegs: list[bytes], workers: int) -> dict[str, Iterator]:
    """Endless batches of each."""
    model, processor = Pretrained("tiny").load()
    shards = write_shards(folder, "train", _samples(jpegs), -(-len(jpegs) // max(workers, 1)))
    stream = SampleStream(
        [WeightedSource(list(map(str, shards)))], BatchComposition(PAIRED, SINGLE), 0, SHUFFLE
    )
    encode = partial(encode_batch, encoder=QueryEncoder.of(model.config, processor, Prompts()))
    paths = [folder / f"{index}.jpg" for index in range(len(jpegs))]
    for path, jpeg in zip(paths, jpegs, strict=True):
        path.write_bytes(jpeg)
    return {
        "plain": iter(make_loader(Files(paths), partial(process_plainly, processor=processor), workers)),
        "ours": iter(make_loader(stream, encode, workers)),
    }


class Files(IterableDataset):
    """Batches of paths for ever, in order, each reader its own."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __iter__(self) -> Iterator[list[Path]]:
        worker = get_worker_info()
        paths = itertools.cycle(self.paths[worker.id :: worker.num_workers] if worker else self.paths)
        while True:
            yield list(itertools.islice(paths, BATCH))


def process_plainly(paths: list[Path], processor: ProcessorMixin) -> list[dict]:
    """Returns what a plain loop makes of image files: pixel values, without prompts."""
    return [
        dict(processor.image_processor(images=[Image.open(path).convert("RGB")], return_tensors="pt"))
        for path in paths
    ]


def _samples(jpegs: list[bytes]) -> Iterator[Sample]:
    """Kinds in the shares in which iterations ask for them."""
    for index, jpeg in enumerate(jpegs):
        kind = "paired" if index % BATCH < PAIRED else "single"
        question = "What color is the bag to the left of the man in the red coat?"
        yield Sample(str(index), question, "red", kind, boxes=((1, 1, 9, 9),), images=(jpeg,))


def draw_jpegs(count: int, size: tuple[int, int], seed: int = 0) -> Iterator[bytes]:
    """Gradients under noise: as heavy to decode as photographs."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    for _ in range(count):
        slopes, offsets = rng.uniform(-120, 120, (2, 3)), rng.uniform(80, 175, 3)
        picture = x[..., None] * slopes[0] + y[..., None] * slopes[1] + offsets
        picture += rng.normal(0, 6, picture.shape)
        buffer = io.BytesIO()
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()
