"""Rows of the published iVGR schema: the tiny world and real photographs with boxes drawn by hand."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import skimage

from ivgr.toy.world import World, draw_samples

PHOTOS = Path(skimage.__file__).parent / "data"
# file, question, answer, boxes: read off the photographs by eye.
BY_HAND = (
    ("astronaut.png", "What is on the left behind the astronaut?", "a flag", [[0, 0, 100, 510]]),
    ("chelsea.png", "What animal is this?", "a cat", [[0.5, 0, 389.25, 300]]),
    (
        "coffee.png",
        "What lies beside the cup?",
        "a spoon",
        [[326, 70, 424, 329], [172, 17, 412, 312]],
    ),
    ("rocket.jpg", "What stands on the launch pad?", "a rocket", [[307, 124, 338, 410]]),
    ("motorcycle_left.png", "What vehicle stands in the garage?", "a motorcycle", [[104, 88, 688, 452]]),
)


def write_published(folder: Path, scenes: int = 40, change=lambda rows: rows) -> list[dict]:
    """folder/rows.parquet and folder/images/…; the rows, sorted by data source as published sets are."""
    (folder / "images").mkdir(parents=True)
    rows = [_scene_row(folder, sample) for sample in draw_samples(World("train", scenes, seed=5))]
    rows += [_photo_row(folder, *photo) for photo in BY_HAND]
    rows = change(sorted(rows, key=lambda row: row["datasource"]))
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return rows


def _scene_row(folder: Path, sample) -> dict:
    path = f"images/{sample.id}.jpg"
    (folder / path).write_bytes(sample.images[0])
    paired = sample.kind == "paired"
    source, kind = ("treevgr", "general_vqa") if paired else ("ours_mmk12", "math")
    return published_row(sample.question, sample.answer, [path], sample.boxes, source, kind)


def _photo_row(folder: Path, name: str, question: str, answer: str, boxes: list) -> dict:
    (folder / "images" / name).write_bytes((PHOTOS / name).read_bytes())
    return published_row(question, answer, [f"images/{name}"], boxes)


def published_row(question, answer, images, boxes, source="treevgr", kind="general_vqa") -> dict:
    return {
        "problem": "<image>\n" * len(images) + question,
        "query": question,
        "answer": answer,
        "images": images,
        "datasource": source,
        "question_type": kind,
        "target_instances": [{"bbox": [float(c) for c in box]} for box in boxes],
    }
