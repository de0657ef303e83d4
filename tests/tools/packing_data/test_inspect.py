"""`ivgr inspect`: counts and histograms against a count by hand, boxes drawn where they are; and
the way from published rows to training, one command each."""

import base64
import gzip
import io
import json
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from rich.console import Console
from transformers import AutoProcessor

from ivgr.cli.main import main
from ivgr.core.prompts import Prompts
from ivgr.data.encode import QueryEncoder
from ivgr.data.shards import write_shards
from ivgr.models.pretrained import TINY as POLICY
from ivgr.plotting.pictures import COLORS, TILE
from ivgr.tools.packing_data.contact_sheet import make_tile
from ivgr.tools.packing_data.survey import Histogram, survey_shards, upright_size
from support.command_line import TINY, fails
from support.packing import pack, samples
from support.published import write_published
from support.samples import encode_image, make_sample

GREEN = tuple(bytes.fromhex(COLORS[0][1:]))


def encoder(family: str) -> QueryEncoder:
    return QueryEncoder(AutoProcessor.from_pretrained(POLICY), family, Prompts())


def block(size, box, orientation=1) -> bytes:
    """A white image with a black block at `box`, stored turned as EXIF `orientation` says."""
    picture = Image.new("RGB", size, "white")
    picture.paste("black", box)
    exif = Image.Exif()
    exif[0x0112] = orientation
    if orientation == 6:
        picture = picture.transpose(Image.Transpose.ROTATE_90)
    data = encode_image(picture, "PNG", exif=exif)
    assert ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size == size
    return data


def extent(mask: np.ndarray) -> tuple[float, ...]:
    """x1, y1, x2, y2 of what is set, as shares of the picture."""
    ys, xs = np.nonzero(mask)
    height, width = mask.shape
    return xs.min() / width, ys.min() / height, (xs.max() + 1) / width, (ys.max() + 1) / height


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("family", [None, "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_box_is_drawn_around_what_it_holds(family, orientation):
    size, box = (430, 250), (120, 60, 300, 190)
    sample = make_sample(boxes=(box,), images=(block(size, box, orientation),))
    tile = make_tile(sample, encoder(family) if family else None)
    picture = np.asarray(tile.pictures[0]).astype(int)
    assert max(picture.shape[:2]) == TILE
    drawn = np.abs(picture - GREEN).sum(-1) < 10
    expected = [c / side for c, side in zip(box, size * 2, strict=True)]
    assert extent(drawn) == pytest.approx(expected, abs=0.012)


@pytest.mark.parametrize(
    ("family", "said"),
    [(None, "[43,50,301,250] in 430 x 250"), ("qwen2_vl", "[100,200,700,1000] in 1000 x 1000")],
)
def test_the_caption_gives_boxes_as_the_model_writes_them(family, said):
    box = (43, 50, 301, 250)
    sample = make_sample(boxes=(box,), images=(block((430, 250), box),), source="mine")
    lines = make_tile(sample, encoder(family) if family else None).lines
    assert said in lines[-1] and lines[1] == "paired, text, mine" and "Q: What color is it?" in lines


def test_the_absolute_frame_is_that_of_the_resized_image():
    box = (43, 50, 301, 250)
    sample = make_sample(boxes=(box,), images=(block((430, 250), box),))
    last = make_tile(sample, encoder("qwen2_5_vl")).lines[-1]
    x1, _y1, _x2, y2, width, height, *resized = map(int, re.findall(r"\d+", last))
    assert (width, height) == tuple(resized) and width % 28 == height % 28 == 0 and width != 430
    assert (x1 / width, y2 / height) == pytest.approx((0.1, 1.0), abs=0.002)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_upright_size_is_that_of_the_upright_image(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode_image(Image.new("RGB", (20, 10)), exif=exif)
    assert upright_size(data, "s") == ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size


@given(st.lists(st.floats(0, 100)))
def test_every_value_falls_into_its_bin(values):
    histogram = Histogram("t", (1, 10, 50))
    for value in values:
        histogram.add(value)
    bins = [(-1, 1), (1, 10), (10, 50), (50, 1000)]
    assert [histogram.counts[i] for i in range(4)] == [sum(a < v <= b for v in values) for a, b in bins]
    console = Console(file=io.StringIO(), width=80)
    console.print(histogram.table())
    shown = re.findall(r"[≤>] \d+ +(\d+)", console.file.getvalue())
    assert sum(map(int, shown)) == len(values)


def test_the_survey_counts_what_is_there(tmp_path):
    """Sources in [brackets] too, which the terminal library would take for markup."""
    boxes = ((0, 0, 10, 10), (0, 0, 100, 100))
    data = encode_image(Image.new("RGB", (100, 200)), "PNG")
    given = [make_sample(f"a{i}", boxes=boxes, images=(data,), source="[bold]") for i in range(4)]
    given += [make_sample(f"b{i}", kind="single", check="math", boxes=(), images=()) for i in range(3)]
    shards = list(map(str, write_shards(tmp_path, "train", given, 5)))
    survey = survey_shards(shards, 100)
    assert [dict(kinds) for kinds in survey.shards.values()] == [{"paired": 4, "single": 1}, {"single": 2}]
    assert survey.values["source"] == {"[bold]": 4, "(none)": 3}
    assert survey.values["check"] == {"text": 4, "math": 3}
    assert survey.sides.counts == {2: 4}
    assert survey.shares.counts == {1: 4, 5: 4}
    assert Counter(map(repr, survey.chosen)) == Counter(map(repr, given))
    console = Console(file=io.StringIO(), width=100)
    console.print(survey.tables())
    assert "[bold]" in console.file.getvalue()


def test_samples_are_chosen_with_equal_chance(tmp_path):
    """3 of 12, over 400 seeds: each about 100 times (a deviation of 40 is 4.6 sigma)."""
    given = [make_sample(f"s{i}", kind="single", boxes=(), images=()) for i in range(12)]
    shards = list(map(str, write_shards(tmp_path, "train", given, 12)))
    counts = Counter(s.id for seed in range(400) for s in survey_shards(shards, 3, seed).chosen)
    assert counts.total() == 1200 and all(abs(counts[s.id] - 100) < 40 for s in given)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in")
    write_published(folder / "rows", 60)
    assert pack(folder / "rows" / "rows.parquet", folder / "out", "--per_shard", 40) == 0
    return folder / "out"


@pytest.mark.parametrize("processor", [(), ("--processor", "tiny")])
def test_a_sheet_shows_every_chosen_sample(packed, tmp_path, capsys, processor):
    main(["inspect", str(packed), "--out", str(tmp_path / "new" / "s.html"), "--count", "70", *processor])
    page = (tmp_path / "new" / "s.html").read_text()
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", page)
    found = samples(packed)
    assert len(pictures) == len(found) == 65
    assert all(max(Image.open(io.BytesIO(base64.b64decode(p))).size) == TILE for p in pictures)
    assert all(f"<code>{sample.id}</code>" in page for sample in found)
    assert "://" not in page
    printed = capsys.readouterr().out
    assert "treevgr" in printed and "ours_mmk12" in printed and "train-000001.tar" in printed
    assert ("tokens of the prompt" in printed) == bool(processor)


def test_a_png_sheet_has_a_tile_a_sample(packed, tmp_path):
    main(["inspect", str(packed), "--out", str(tmp_path / "s.png"), "--count", "6"])
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.width == 4 * (TILE + 12) and sheet.height > 2 * TILE
        columns = np.asarray(sheet.convert("L")).min(0).reshape(4, -1).min(1)
        assert (columns < 128).all()


def test_questions_are_text_not_markup(tmp_path):
    sample = make_sample(
        question="<script>alert('[/bold]')</script>", images=(block((90, 90), (1, 1, 9, 9)),)
    )
    write_shards(tmp_path, "train", [sample], 1)
    main(["inspect", str(tmp_path), "--out", str(tmp_path / "s.html")])
    assert "<script>" not in (tmp_path / "s.html").read_text()


def test_misuse_is_one_line(capsys, packed, tmp_path):
    assert "s.gif" in fails(capsys, "inspect", str(packed), "--out", "s.gif")
    assert "no shard" in fails(capsys, "inspect", str(tmp_path / "none"))
    error = fails(
        capsys, "inspect", str(packed), "--processor", str(tmp_path), "--out", str(tmp_path / "s.html")
    )
    assert "--processor" in error
    write_shards(tmp_path, "train", [make_sample("odd", images=(b"no picture",))], 1)
    assert "odd" in fails(capsys, "inspect", str(tmp_path), "--out", str(tmp_path / "s.html"))


def test_pack_inspect_fit_one_command_each(tmp_path, capsys):
    """Published rows of drawn scenes and photographs train for five iterations."""
    write_published(tmp_path / "in", 40)
    main(["pack", str(tmp_path / "in" / "rows.parquet"), str(tmp_path / "shards")])
    main(["inspect", str(tmp_path / "shards"), "--processor", "tiny", "--out", str(tmp_path / "sheet.html")])
    shards, root = str(tmp_path / "shards"), tmp_path / "run"
    main([
        "fit", "--config", TINY, "--trainer.default_root_dir", str(root), "--model.iterations", "5",
        "--data", "ivgr.data.datamodule.ShardDataModule", "--data.train", shards, "--data.val", shards,
        "--data.prompts", "8", "--data.paired_ratio", "0.75", "--data.val_queries", "2",
        "--model.engine.sampling.max_new_tokens", "4", "--model.engine.sampling.group_size", "2",
    ])  # fmt: skip
    rollouts = sorted((root / "rollouts").iterdir())
    assert [path.name for path in rollouts] == [f"{n:06d}.jsonl.gz" for n in range(1, 6)]
    lines = [line for path in rollouts for line in gzip.decompress(path.read_bytes()).splitlines()]
    seen = {json.loads(line)["id"] for line in lines}
    known = {sample.id: sample for sample in samples(shards)}
    assert seen <= set(known) and len(seen) >= 15
    assert "45 samples" in capsys.readouterr().out
