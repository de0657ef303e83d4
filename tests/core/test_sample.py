import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ivgr.core.errors import UserError
from ivgr.core.rejection import RejectedSample
from ivgr.core.sample import Sample, parse_sample, read_sample
from support.samples import BOX, encode_image, jpeg, make_sample

WHERE = "/data/train-000003.tar: 00000042"
GOOD = {"id": "s0", "question": "What?", "answer": "B", "boxes": [[1, 2, 3, 4], [5.5, 6, 7, 8]]}
GOOD |= {"labels": ["cat", "dog"], "kind": "paired", "check": "choice", "source": "here"}
GOOD |= {"options": {"A": "cat", "B": "dog"}, "reasoning": {"textual": "It is a dog."}}
EMPTY = (None, "", " \n", 5, ["x"], {})
NOT_LISTS = (5, True, "ab")
BAD_BOXES = ([1, 2, 3], [1, 2, 3, 4, 5], ["1", "2", "3", "4"], [1, 2, None, 4], [False, False, True, True])
EMPTY_BOXES = ([3, 2, 3, 4], [1, 4, 3, 4], [3, 2, 1, 4], [1, 4, 3, 2])
ENDLESS_BOXES = ([1, 2, float("nan"), 4], [1, 2, float("inf"), 4], [float("-inf"), 2, 3, 4])
BAD_VALUES = {
    "id": EMPTY,
    "question": EMPTY,
    "answer": EMPTY,
    "kind": ("Paired", "", None, 1, ["paired"]),
    "check": ("vqa", "", None, {"text": 1}),
    "boxes": (
        *NOT_LISTS,
        [],
        None,
        {"a": 1},
        [5],
        [None],
        [[]],
        ["1234"],
        [[1, 2, 10**400, 4]],
        *tuple([box, [5, 6, 7, 8]] for box in BAD_BOXES + EMPTY_BOXES + ENDLESS_BOXES),
    ),
    "labels": (*NOT_LISTS, ["cat"], ["a", "b", "c"], [1, 2]),
    "options": (*NOT_LISTS, ["cat", "dog"], {"A": 1, "B": 2}),
    "reasoning": (*NOT_LISTS, ["x"], {"textual": 5}),
    "source": (5,),
}
MISUSES = [(name, value) for name, values in BAD_VALUES.items() for value in values]
BAD_JSON = (b"", b"{", b'{"id":\n\n"a" x}', b'{"id": "\xe9"}', b"[1]", b"null", b'"text"')
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def entry(fields: object, **files: bytes) -> dict:
    raw = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return {"__key__": "00000042", "__url__": "/data/train-000003.tar", "json": raw, **files}


def one_line(caught: pytest.ExceptionInfo) -> str:
    message = str(caught.value)
    assert message and len(message.splitlines()) == 1
    return message


def test_every_field_of_the_schema_is_read():
    sample = parse_sample(GOOD, (b"image",), WHERE)
    assert (sample.id, sample.question, sample.answer, sample.source) == ("s0", "What?", "B", "here")
    assert (sample.kind, sample.check) == ("paired", "choice")
    assert sample.boxes == ((1, 2, 3, 4), (5.5, 6, 7, 8)) and sample.labels == ("cat", "dog")
    assert sample.options == {"A": "cat", "B": "dog"} and sample.reasoning == {"textual": "It is a dog."}
    assert sample.images == (b"image",)


@pytest.mark.parametrize(("name", "value"), MISUSES, ids=lambda value: repr(value)[:40])
def test_a_misused_field_is_named_in_one_line_with_shard_and_key(name, value):
    with pytest.raises(UserError) as caught:
        parse_sample({**GOOD, name: value}, (b"image",), WHERE)
    message = one_line(caught)
    assert message.startswith(WHERE) and f'"{name}"' in message


@pytest.mark.parametrize("name", ["id", "question", "answer"])
def test_a_field_left_out_is_named(name):
    with pytest.raises(UserError, match=f'"{name}"'):
        parse_sample({k: v for k, v in GOOD.items() if k != name}, (b"image",), WHERE)


def test_a_choice_answer_that_is_none_of_the_options_is_refused():
    with pytest.raises(UserError, match='"answer"'):
        parse_sample({**GOOD, "answer": "E"}, (b"image",), WHERE)


def test_boxes_without_an_image_are_refused():
    with pytest.raises(UserError, match="boxes.*image") as caught:
        parse_sample(GOOD, (), WHERE)
    assert one_line(caught).startswith(WHERE)


def test_a_paired_sample_without_boxes_is_told_of_the_single_kind():
    with pytest.raises(UserError, match='"single"'):
        parse_sample({"id": "s0", "question": "What?", "answer": "B", "kind": "paired"}, (b"image",), WHERE)


@pytest.mark.parametrize("raw", BAD_JSON)
def test_json_that_is_no_object_is_named_by_file(raw):
    with pytest.raises(UserError) as caught:
        read_sample(entry(raw))
    assert one_line(caught).startswith(f"{WHERE}.json")


def test_images_without_json_are_named():
    with pytest.raises(UserError) as caught:
        read_sample({"__key__": "00000042", "__url__": "/data/train-000003.tar", "jpg": jpeg()})
    assert "/data/train-000003.tar" in one_line(caught) and "00000042.json" in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([*GOOD, "other"]), json_values)
def test_any_json_is_either_a_sample_or_a_user_error(name, value):
    try:
        sample = parse_sample({**GOOD, name: value}, (b"image",), WHERE)
    except UserError as error:
        assert str(error).startswith(WHERE) and len(str(error).splitlines()) == 1
    else:
        texts = (sample.source, *sample.labels, *sample.options.values(), *sample.reasoning.values())
        assert all(isinstance(text, str) for text in texts)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp"])
def test_one_image_stands_beside_the_json(suffix):
    assert read_sample(entry(GOOD, **{suffix: b"image"})).images == (b"image",)


def test_text_only_samples_have_no_image():
    single = {"id": "s0", "question": "1+1?", "answer": "2", "kind": "single", "check": "math"}
    assert read_sample(entry(single)).images == ()


@given(st.permutations(range(13)))
def test_several_images_come_in_numeric_order(order):
    files = {f"{i}.{'jpg' if i % 2 else 'png'}": b"image %d" % i for i in order}
    assert read_sample(entry(GOOD, **files)).images == tuple(b"image %d" % i for i in range(13))


@pytest.mark.parametrize("names", [("jpg", "png"), ("jpg", "0.jpg"), ("1.jpg", "1.png")])
def test_two_images_for_one_place_are_refused_rather_than_one_lost(names):
    with pytest.raises(UserError, match="00000042"):
        read_sample(entry(GOOD, **dict.fromkeys(names, b"image")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation):
    """EXIF orientation: the sides on which the stored row 0 and column 0 are seen."""
    sides = "top left,top right,bottom right,bottom left,left top,right top,right bottom,left bottom"
    first_row, first_column = sides.split(",")[orientation - 1].split()
    colors = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[0, 0, 0], [255, 255, 255], [128, 128, 0]]])
    upright = colors.repeat(16, 0).repeat(16, 1).astype(np.uint8)
    stored = upright if first_row in ("top", "bottom") else upright.transpose(1, 0, 2)
    stored = stored[::-1] if first_row in ("bottom", "right") else stored
    stored = stored[:, ::-1] if first_column in ("right", "bottom") else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode_image(Image.fromarray(np.ascontiguousarray(stored)), quality=95, subsampling=0, exif=exif)
    [image] = make_sample(images=(data,)).open_images()
    assert image.size == (48, 32)
    assert np.abs(np.asarray(image)[8::16, 8::16].astype(int) - colors).max() < 12


@pytest.mark.parametrize(
    ("mode", "kind", "color", "seen"),
    [
        ("RGB", "JPEG", (200, 30, 30), (200, 30, 30)),
        ("L", "JPEG", 90, (90, 90, 90)),
        ("CMYK", "JPEG", (0, 255, 255, 0), (255, 0, 0)),
        ("RGBA", "PNG", (10, 200, 30, 255), (10, 200, 30)),
        ("RGBA", "WEBP", (10, 200, 30, 255), (10, 200, 30)),
        ("LA", "PNG", (90, 255), (90, 90, 90)),
        ("P", "PNG", 0, (0, 0, 0)),
        ("1", "PNG", 1, (255, 255, 255)),
    ],
)
def test_images_of_every_mode_become_rgb(mode, kind, color, seen):
    [image] = make_sample(images=(encode_image(Image.new(mode, (16, 12), color), kind),)).open_images()
    assert image.mode == "RGB" and image.size == (16, 12)
    assert np.abs(np.array(image.getpixel((5, 5))) - seen).max() <= 4


def test_16_bits_are_scaled_and_not_clipped():
    ramp = np.linspace(0, 65535, 256).reshape(16, 16)
    for kind in ("PNG", "TIFF"):
        data = encode_image(Image.fromarray(ramp.astype(np.uint16)), kind)
        [image] = make_sample(images=(data,)).open_images()
        assert np.array_equal(np.asarray(image)[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("alpha", [0, 51, 255])
def test_transparency_is_laid_on_white(kind, alpha):
    data = encode_image(Image.new("RGBA", (16, 12), (10, 200, 30, alpha)), kind, lossless=True)
    [image] = make_sample(images=(data,)).open_images()
    seen = [255 + (color - 255) * alpha / 255 for color in (10, 200, 30)]
    assert np.abs(np.array(image.getpixel((5, 5))) - seen).max() <= 2


def test_a_transparent_colour_of_a_palette_is_white():
    palette = Image.new("P", (16, 12), 1)
    palette.putpalette([10, 20, 30, 200, 40, 50])
    palette.paste(0, (0, 0, 8, 12))
    for kind in ("PNG", "GIF"):
        [image] = make_sample(images=(encode_image(palette, kind, transparency=0),)).open_images()
        assert (image.getpixel((2, 2)), image.getpixel((12, 2))) == ((255, 255, 255), (200, 40, 50))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_an_animated_image_is_its_first_frame(kind):
    first, second = (Image.new("RGB", (16, 12), color) for color in ((200, 30, 30), (30, 30, 200)))
    data = encode_image(first, kind, save_all=True, append_images=[second])
    [image] = make_sample(images=(data,)).open_images()
    assert np.abs(np.array(image.getpixel((5, 5))) - (200, 30, 30)).max() <= 8


def test_the_largest_image_is_read_and_one_pixel_more_is_not(monkeypatch):
    monkeypatch.setattr("ivgr.core.images.MAX_PIXELS", 16 * 12)
    assert make_sample(images=(jpeg(),)).open_images()[0].size == (16, 12)
    with pytest.raises(RejectedSample) as caught:
        make_sample(images=(jpeg(size=(193, 1)),)).open_images()
    assert caught.value.reason == "image: too large"


def test_a_rejection_survives_the_way_out_of_a_reader_process():
    error = RejectedSample("the message", "image: empty")
    error.id = "s7"
    sent = pickle.loads(pickle.dumps(error))
    assert (str(sent), sent.reason, sent.id) == ("the message", "image: empty", "s7")


@pytest.mark.parametrize("data", [b"", b"no image", jpeg()[:300], jpeg()[:-40]], ids=len)
def test_a_broken_image_is_named_by_sample_and_place(data):
    with pytest.raises(UserError) as caught:
        make_sample("s7", images=(jpeg(), data)).open_images()
    message = one_line(caught)
    assert "s7" in message and "image 1" in message and " at 0x" not in message


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255), st.booleans())
def test_a_damaged_image_is_either_read_or_refused(place, byte, cut):
    data = bytearray(jpeg())
    data[place % len(data)] = byte
    sample = Sample("s0", "What?", "red", boxes=(BOX,), images=(bytes(data[: place if cut else None]),))
    try:
        assert sample.open_images()[0].mode == "RGB"
    except UserError as error:
        assert "s0" in str(error)
