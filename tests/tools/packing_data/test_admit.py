"""One row or image at a time: boxes, budget, ids, and whatever rubbish comes in."""

import base64
import io
import os
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor

from ivgr.core.boxes import clip_box, is_box
from ivgr.core.images import open_image
from ivgr.core.prompts import Prompts
from ivgr.core.rejection import RejectedSample
from ivgr.data.encode import QueryEncoder
from ivgr.models.pretrained import TINY
from ivgr.tools.packing_data.admit import LONGEST, admit_row, content_id
from ivgr.tools.packing_data.convert import Draft, Rejected
from ivgr.tools.packing_data.source_images import MOST_PIXELS, fetch_image, fit_image, shrunk_size
from ivgr.tools.packing_data.source_rows import Row
from support.packing import admit
from support.samples import encode_image, jpeg, make_sample

odd = st.sampled_from([float("nan"), 1e308, 10**400])
coordinates = st.one_of(st.integers(-300, 300), st.floats(-300, 300), odd)
numbers = st.lists(coordinates, min_size=3, max_size=5)


def share_inside(box, size) -> tuple[Fraction, Fraction]:
    """Of the box's area, and in pixels: exactly."""
    x1, y1, x2, y2 = map(Fraction, box)
    inside = max(min(x2, size[0]) - max(x1, 0), 0) * max(min(y2, size[1]) - max(y1, 0), 0)
    return inside / ((x2 - x1) * (y2 - y1)), inside


@given(numbers, st.tuples(st.integers(1, 200), st.integers(1, 200)))
def test_a_box_is_clipped_or_rejected_by_the_share_of_it_that_is_there(box, size):
    """Against the definition: four finite numbers in order, half of its area and more than a pixel
    within the image."""
    good = len(box) == 4 and all(-1e9 < c < 1e9 for c in box) and box[0] < box[2] and box[1] < box[3]
    assert is_box(box) == good
    if not good:
        return
    share, inside = share_inside(box, size)
    if abs(share - Fraction(1, 2)) < 1e-12 or 0 < abs(inside - 1) < 1e-12:
        return  # floats may decide either way
    if share < Fraction(1, 2) or inside <= 1 < size[0] * size[1]:
        with pytest.raises(RejectedSample, match="^here: box"):
            clip_box(box, size, "here")
        return
    assert list(clip_box(box, size, "here")) == [sorted((0, c, size[i % 2]))[1] for i, c in enumerate(box)]


EDGES = (
    [60, 0, 90, 40],
    [31, 0, 90, 40],
    [30, 0, 90, 40],
    [-1, -1, 20, 20],
    [40, 20, 79, 59],
    [42, 28, 78, 52],
)


@pytest.mark.parametrize("box", [*EDGES, [0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1], [5, 5, 6.5, 6.5]])
def test_what_pack_takes_is_what_training_takes(tmp_path, box):
    """The same box of the same image, packed and loaded without being packed."""
    sample = make_sample(boxes=(tuple(box),), images=(jpeg(size=(60, 40)),))
    verdict = admit(tmp_path, question="q?", answer="a", image=sample.images[0], boxes=[box])
    encoder = QueryEncoder(AutoProcessor.from_pretrained(TINY), "qwen2_vl", Prompts())
    if verdict.sample is None:
        with pytest.raises(RejectedSample) as caught:
            encoder(sample)
        assert verdict.reason.startswith(f"{caught.value.reason.replace(':', '')}: box [")
    else:
        assert encoder(sample).boxes == encoder(verdict.sample).boxes


def test_what_pack_shrinks_is_still_taken_in_training(tmp_path):
    """A box of some pixels that shrinks to less than one is rejected by pack, not by the run."""
    image = encode_image(Image.new("RGB", (4000, 2000)), "PNG")
    row = {"question": "q?", "answer": "a", "image": image}
    assert admit(tmp_path, **row, boxes=[[7, 7, 8.2, 8.2]]).reason.startswith("box smaller than a pixel")
    assert admit(tmp_path, **row, boxes=[[7, 7, 9, 9]]).sample is not None


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 10**6))
def test_the_shrunk_size_fills_the_budget(width, height, budget):
    w, h = shrunk_size(width, height, budget) if width * height > budget else (width, height)
    assert 1 <= w <= width and 1 <= h <= height and w * h <= budget
    if width * height > budget and min(w, h) > 1:
        assert w * h >= budget - w - h - 1
        assert abs(w - h * width / height) <= 1 + width / height


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_image_is_shrunk_with_its_boxes(tmp_path, orientation):
    """A green block on red, stored turned by EXIF: the scaled box still holds the block."""
    upright = Image.new("RGB", (3000, 2000), "red")
    upright.paste("green", (900, 300, 1500, 1100))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose.ROTATE_90)
    data = encode_image(stored, quality=95, exif=exif)
    box = [900, 300, 1500, 1100]
    verdict = admit(tmp_path, question="Where?", answer="here", image=data, boxes=[box])
    (picture,) = verdict.sample.open_images()
    assert picture.width * picture.height <= MOST_PIXELS < 1.01 * picture.width * picture.height
    scale = [picture.width / 3000, picture.height / 2000] * 2
    expected = [c * s for c, s in zip(box, scale, strict=True)]
    assert list(verdict.sample.boxes[0]) == pytest.approx(expected, rel=1e-12)
    x1, y1, x2, y2 = verdict.sample.boxes[0]
    inside = picture.crop((round(x1) + 3, round(y1) + 3, round(x2) - 3, round(y2) - 3)).getextrema()
    assert inside[0][1] < 60 and inside[1][0] > 90
    assert picture.getpixel((round(x1) - 4, round(y1) - 4))[0] > 200
    assert verdict.notes == ("image shrunk to the pixel budget",)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(8, 8), (1792, 1792), (16056, 200)])
def test_an_image_within_the_budget_keeps_its_bytes(kind, size):
    data = encode_image(Image.linear_gradient("L").resize(size), kind)
    assert fit_image(data).data == data and fit_image(data).size == size


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF"])
def test_other_formats_become_png_without_loss(kind):
    picture = Image.linear_gradient("L")
    fitted = fit_image(encode_image(picture, kind))
    again = Image.open(io.BytesIO(fitted.data))
    assert again.format == "PNG" and again.convert("L").tobytes() == picture.tobytes()
    assert fitted.change == f"{kind} rewritten as PNG"


@given(st.binary(max_size=60), st.integers(0, 300))
@settings(max_examples=60)
def test_no_bytes_break_the_packer(noise, cut):
    for data in (noise, jpeg()[:cut] + noise, encode_image(Image.new("RGB", (9, 9)), "PNG")[:cut] + noise):
        try:
            assert fit_image(data).size[0] > 0
        except Rejected as error:
            assert str(error).partition(":")[0] in ("broken image", "aspect ratio")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.binary(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


NAMES = ("id", "question", "problem", "answer", "image", "images", "boxes", "target_instances", "kind")


NAMES += ("check", "labels", "options", "reasoning", "source", "datasource", "question_type")


@given(st.dictionaries(st.sampled_from(NAMES), json_values, max_size=4))
@settings(max_examples=100)
def test_no_row_breaks_the_packer(odd):
    row = {"question": "?", "answer": "!", "image": jpeg(), "boxes": [[0, 0, 9, 9]]} | odd
    with tempfile.TemporaryDirectory() as folder:
        verdict = admit_row(Row("rows:1", row), Path(folder))
    assert (verdict.sample is None) == bool(verdict.reason)


boxes = st.lists(st.lists(st.integers(0, 500), min_size=4, max_size=4), max_size=3)


@given(st.tuples(st.text(), st.text(), boxes, st.lists(st.binary(), max_size=2)), st.data())
def test_a_content_id_depends_on_the_content_alone(content, data):
    def identify(question, answer, boxes, images):
        return content_id(Draft("", {"question": question, "answer": answer, "boxes": boxes}, ()), images)

    floats = [[float(c) for c in box] for box in content[2]]
    assert identify(*content) == identify(content[0], content[1], floats, content[3])
    other = data.draw(st.tuples(st.text(), st.text(), boxes, st.lists(st.binary(), max_size=2)))
    assert (identify(*other) == identify(*content)) == (other == content)


MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "HSV", "LAB")
KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
pictures = st.tuples(st.sampled_from(MODES), st.sampled_from(KINDS), st.integers(1, 8), st.booleans())


def paint(mode: str, transparent: bool) -> Image.Image:
    """Every colour and degree of transparency, in `mode`; or a palette with a transparent colour."""
    values = np.random.default_rng(0).integers(0, 256, (48, 64, 4), dtype=np.uint8)
    picture = Image.fromarray(values)
    if mode == "P" and transparent:
        picture = picture.convert("RGB").quantize(16)
        picture.info["transparency"] = 3
        return picture
    if mode.startswith(("I", "F")):
        wide = values[..., 0].astype(np.uint16) * 257
        return Image.fromarray(wide) if mode == "I;16" else Image.fromarray(values[..., 0]).convert(mode)
    via = picture if mode in ("RGBA", "LA", "PA") else picture.convert("RGB")
    return via.convert({"PA": "LA"}.get(mode, mode))


@settings(max_examples=120)
@given(pictures, st.sampled_from([10**6, 1500]))
def test_what_is_packed_is_what_the_reader_shows(picture, most_pixels):
    mode, kind, orientation, transparent = picture
    exif = Image.Exif()
    exif[0x0112] = orientation
    try:
        data = encode_image(paint(mode, transparent), kind, exif=exif.tobytes(), lossless=True)
    except (OSError, ValueError, KeyError):
        return  # a format that does not hold this mode
    try:
        shown = open_image(data, "x")
    except RejectedSample as error:
        with pytest.raises(Rejected, match=error.reason.removeprefix("image: ")):
            fit_image(data, most_pixels)
        return
    fitted = fit_image(data, most_pixels)
    packed = open_image(fitted.data, "packed")
    size = shrunk_size(*shown.size, most_pixels) if most_pixels < 3072 else shown.size
    assert fitted.size == shown.size
    if size != shown.size:
        shown = shown.resize(size, Image.Resampling.LANCZOS)
        if kind == "JPEG":  # which loses something once more
            shown = open_image(encode_image(shown, "JPEG", quality=95), "x")
    assert packed.size == size and packed.tobytes() == shown.tobytes()


def test_an_image_in_base64_is_that_image(tmp_path):
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF"):
        data = encode_image(Image.new("RGB", (64, 48), "red"), kind)
        text = base64.b64encode(data).decode()
        wrapped = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
        for written in (text, wrapped, f"data:image/{kind.lower()};base64,{text}"):
            assert fetch_image(written, tmp_path) == data
    verdict = admit(tmp_path, question="q?", answer="a", image=base64.b64encode(os.urandom(90_000)).decode())
    assert verdict.sample is None and len(verdict.reason) <= LONGEST and "image" in verdict.reason


@pytest.mark.parametrize("name", ["fifo", "zeros", "folder", "nul\0.jpg", "sparse", "x" * 5000])
@pytest.mark.timeout(20)
def test_what_is_no_image_file_is_not_read(tmp_path, monkeypatch, name):
    monkeypatch.setattr("ivgr.core.regular_files.LARGEST_FILE", 1 << 16)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    verdict = admit(tmp_path, question="q?", answer="a", image=name)
    assert verdict.sample is None and verdict.reason.startswith("missing image") and len(verdict.reason) < 150


OPTIONS_12 = [f"thing {n}" for n in range(12)]
NO_BBOX = 'bad box: no "bbox" among'


@pytest.mark.parametrize(
    ("row", "outcome"),
    [
        ({"options": OPTIONS_12, "answer": "L"}, ("choice", "L", 12)),
        ({"options": OPTIONS_12, "answer": "thing 10"}, ("choice", "K", 12)),
        ({"options": [f"{n}" for n in range(27)], "answer": "A"}, "options: "),
        ({"options": ["A. red", "B. blue"], "answer": "blue"}, ("choice", "B", 2)),
        ({"options": ["red", None, "blue", None], "answer": "blue"}, ("choice", "C", 2)),
        ({"options": ["red", "blue"], "answer": "green"}, "answer: 'green' is none of its options"),
        ({"options": ["red", "blue"], "answer": 1}, "answer: '1' is none of its options"),
        ({"options": "[" * 5000, "answer": "A"}, "options: "),
        ({"boxes": [{"bbox_2d": [1, 2, 30, 40], "label": "bag"}]}, f"{NO_BBOX} ['bbox_2d', 'label']"),
        ({"boxes": [{"bbox": None, "bbox_2d": [1, 2, 30, 40]}]}, NO_BBOX),
    ],
)
def test_rows_are_taken_as_they_are_meant_or_rejected_by_name(tmp_path, row, outcome):
    verdict = admit(tmp_path, **{"question": "q?", "answer": "red", "image": jpeg(size=(64, 48))} | row)
    if isinstance(outcome, str):
        assert (
            verdict.sample is None and verdict.reason.startswith(outcome) and len(verdict.reason) <= LONGEST
        )
    else:
        sample = verdict.sample
        assert (sample.check, sample.answer, len(sample.options)) == outcome


def test_an_entry_without_a_box_is_skipped_and_counted(tmp_path):
    row = {"question": "q?", "answer": "a", "image": jpeg(size=(64, 48)), "datasource": "treevgr"}
    boxes = [{"bbox": [1, 2, 30, 40]}, {"bbox": None}, None, {"bbox": [5, 5, 20, 20]}]
    verdict = admit(tmp_path, **row, target_instances=boxes, labels=["a", "b", "c", "d"])
    assert verdict.sample.boxes == ((1, 2, 30, 40), (5, 5, 20, 20)) and verdict.sample.labels == ("a", "d")
    assert verdict.notes == ("entry without a box left out",)
    none = admit(tmp_path, **row, target_instances=[{"bbox": None}])
    assert none.sample is None and '"kind" is "single"' in none.reason
    assert admit(tmp_path, **row | {"datasource": "x"}, boxes=[None]).sample.kind == "single"
