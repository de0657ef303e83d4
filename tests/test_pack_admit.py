"""One row or image at a time: boxes, budget, ids, and whatever rubbish comes in."""

import io
import tempfile
from pathlib import Path

import pytest
from conftest import encode_image, jpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from packing import admit
from PIL import Image

from ivgr.pack.admit import admit_row, clip_box, content_id
from ivgr.pack.convert import Draft, Rejected
from ivgr.pack.images import MOST_PIXELS, fit_image, shrunk_size
from ivgr.pack.rows import Row

odd = st.sampled_from([float("nan"), 1e308, 10**400])


coordinates = st.one_of(st.integers(-300, 300), st.floats(-300, 300), odd)


@given(st.lists(coordinates, min_size=3, max_size=5), st.tuples(st.integers(1, 200), st.integers(1, 200)))
def test_a_clipped_box_is_the_intersection_or_rejected(box, size):
    """Against the definition: four finite numbers in order and a centre within the image."""
    good = len(box) == 4 and all(-1e9 < c < 1e9 for c in box) and box[0] < box[2] and box[1] < box[3]
    good = good and all(0 <= box[i] / 2 + box[i + 2] / 2 <= size[i] for i in (0, 1))
    if not good:
        with pytest.raises(Rejected):
            clip_box(box, size)
        return
    expected = [sorted((0, c, size[i % 2]))[1] for i, c in enumerate(box)]
    assert list(clip_box(box, size)) == expected


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
