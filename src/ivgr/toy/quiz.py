"""The tiny world's questions as a benchmark: a TSV as VLMEvalKit writes it for V*.

In: a `World`. Out: index, image, question, A-D, answer, category and target_instances, the gold
boxes in pixels.
"""

import base64
import csv
import json
from pathlib import Path

import numpy as np

from ivgr.core.atomic_files import file_to_write
from ivgr.core.sample import Sample
from ivgr.core.seeding import derive_seed
from ivgr.toy.scene import COLORS, SHAPES
from ivgr.toy.world import World, draw_samples

COLUMNS = ("index", "image", "question", *"ABCD", "answer", "category", "target_instances")
SIDES = (("left", "right"), ("above", "below"))


def write_quiz(path: Path, world: World) -> int:
    """Writes the paired questions of `world`; returns how many there are."""
    rng = np.random.default_rng(derive_seed("quiz", world.seed))
    samples = [sample for sample in draw_samples(world) if sample.kind == "paired"]
    with file_to_write(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter="\t", restval="")
        writer.writeheader()
        for index, sample in enumerate(samples):
            writer.writerow({"index": index, **_row(sample, rng)})
    return len(samples)


def _row(sample: Sample, rng: np.random.Generator) -> dict:
    options = _options(sample.answer, rng)
    return {
        "image": base64.b64encode(sample.images[0]).decode(),
        "question": sample.question,
        **dict(zip("ABCD", options, strict=False)),
        "answer": "ABCD"[options.index(sample.answer)],
        "category": "relative_position" if len(sample.boxes) > 1 else "direct_attributes",
        "target_instances": json.dumps(sample.boxes),
    }


def _options(answer: str, rng: np.random.Generator) -> list[str]:
    """The answer among three others of its kind, or beside its opposite, in random order."""
    kind = next(values for values in (*SIDES, tuple(COLORS), SHAPES) if answer in values)
    others = [value for value in kind if value != answer]
    chosen = [others[i] for i in rng.permutation(len(others))[:3]]
    return [[answer, *chosen][i] for i in rng.permutation(len(chosen) + 1)]
