import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivgr.core.boxes import iou
from ivgr.core.errors import UserError
from ivgr.core.frame import Frame
from ivgr.models.registry import find_family

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
RELATIVE_FAMILIES = ("qwen2_vl", "qwen3_vl")
sides = st.integers(1, 10_000)
sizes = st.tuples(sides, sides)
spans = st.lists(st.floats(0, 10_000), min_size=2, max_size=2, unique=True).map(sorted)
pixel_boxes = st.builds(lambda x, y: (x[0], y[0], x[1], y[1]), spans, spans)
cells = st.lists(st.integers(0, 50), min_size=2, max_size=2, unique=True).map(sorted)
whole_boxes = st.builds(lambda x, y: (x[0], y[0], x[1], y[1]), cells, cells)
families = st.sampled_from(FAMILIES)


def frame_of(family: str, resized: tuple[int, int]) -> Frame:
    return find_family(family).frame(resized)


@pytest.mark.parametrize("family", RELATIVE_FAMILIES)
def test_relative_families_write_thousandths_of_the_original_image(family):
    frame = frame_of(family, (56, 112))
    assert frame.from_pixels((10, 20, 30, 40), (100, 200)) == pytest.approx((100, 100, 300, 200))


def test_qwen2_5_vl_writes_pixels_of_the_resized_image():
    frame = frame_of("qwen2_5_vl", (56, 224))
    assert frame.from_pixels((10, 20, 30, 40), (100, 200)) == pytest.approx((5.6, 22.4, 16.8, 44.8))


def test_qwen2_5_vl_keeps_boxes_of_an_image_that_was_not_resized():
    assert frame_of("qwen2_5_vl", (140, 280)).from_pixels((3, 4, 50, 60), (140, 280)) == (3, 4, 50, 60)


@pytest.mark.parametrize("family", FAMILIES)
def test_to_pixels_reads_what_the_family_wrote(family):
    written = (100, 100, 300, 200) if family in RELATIVE_FAMILIES else (5.6, 22.4, 16.8, 44.8)
    assert frame_of(family, (56, 224)).to_pixels(written, (100, 200)) == pytest.approx((10, 20, 30, 40))


@given(families, sizes, sizes, pixel_boxes)
def test_there_and_back_again_gives_the_same_pixels(family, resized, size, box):
    frame = frame_of(family, resized)
    assert frame.to_pixels(frame.from_pixels(box, size), size) == pytest.approx(box, rel=1e-9, abs=1e-9)


@given(families, sizes, sizes)
def test_the_whole_image_fills_the_whole_frame(family, resized, size):
    expected = (1000, 1000) if family in RELATIVE_FAMILIES else resized
    box = frame_of(family, resized).from_pixels((0, 0, *size), size)
    assert box == pytest.approx((0, 0, *expected))


@given(families, sizes, sizes, whole_boxes, whole_boxes)
def test_overlap_does_not_depend_on_the_frame(family, resized, size, a, b):
    frame = frame_of(family, resized)
    framed = iou(frame.from_pixels(a, size), frame.from_pixels(b, size))
    assert framed == pytest.approx(iou(a, b), abs=1e-9)


@given(sizes, sizes)
def test_relative_frames_do_not_depend_on_the_resized_size(first, second):
    for family in RELATIVE_FAMILIES:
        assert frame_of(family, first) == frame_of(family, second) == Frame(1000, 1000)


def test_width_scales_x_and_height_scales_y():
    assert Frame(10, 1000).from_pixels((1, 1, 2, 2), (10, 10)) == (1, 100, 2, 200)


@pytest.mark.parametrize("name", ["llava", "", "Qwen2-VL", "qwen3_vl_"])
def test_an_unknown_family_is_refused_with_the_known_ones_listed(name):
    with pytest.raises(UserError) as caught:
        frame_of(name, (28, 28))
    message = str(caught.value)
    assert repr(name) in message and "\n" not in message
    assert all(family in message for family in FAMILIES)
