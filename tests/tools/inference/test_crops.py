"""Crops lie in the image, hold their boxes and do not depend on the order of the boxes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ivgr.core.boxes import iou
from ivgr.plotting.pictures import draw_boxes
from ivgr.tools.inference.crops import Cropping
from ivgr.tools.inference.draw_reply import draw_reply


def boxes_of(numbers):
    """Lists of boxes with corners in order."""
    spans = st.lists(numbers, min_size=2, max_size=2, unique=True).map(sorted)
    boxes = st.tuples(spans, spans).map(lambda s: (s[0][0], s[1][0], s[0][1], s[1][1]))
    return st.lists(boxes, max_size=14)


sizes = st.tuples(st.integers(1, 900), st.integers(1, 900))
boxes = boxes_of(st.floats(-300, 1200))
croppings = st.builds(
    Cropping,
    margin=st.floats(0, 2),
    smallest=st.integers(1, 120),
    most=st.integers(1, 10),
    duplicate_iou=st.floats(0.1, 1, exclude_min=True),
)


@given(boxes, sizes, croppings)
def test_crops_lie_in_the_image_and_the_union_holds_all(found, size, cropping):
    width, height = size
    around = cropping.union(found, size)
    for x1, y1, x2, y2 in cropping.crops(found, size):
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        assert x2 - x1 >= min(cropping.smallest, width) and y2 - y1 >= min(cropping.smallest, height)
        assert around[0] <= x1 and around[1] <= y1 and around[2] >= x2 and around[3] >= y2
    inside = [b for b in found if b[0] < width and b[1] < height and b[2] > 0 and b[3] > 0]
    assert (around is None) == (inside == []) == (cropping.crops(found, size) == [])
    if around:
        corners = zip(*[cropping.crop(box, size) for box in inside], strict=True)
        assert around == tuple(f(c) for f, c in zip((min, min, max, max), corners, strict=True))


@given(boxes, sizes, croppings)
def test_a_crop_holds_what_of_its_box_is_in_the_image(found, size, cropping):
    for box in found:
        rectangle = cropping.crop(box, size)
        if rectangle is not None:
            for axis in (0, 1):
                assert rectangle[axis] <= max(box[axis], 0) + 1e-5
                assert rectangle[axis + 2] >= min(box[axis + 2], size[axis]) - 1e-5


@given(boxes, sizes, croppings, st.randoms())
def test_the_order_of_boxes_decides_nothing(found, size, cropping, random):
    shuffled = random.sample(found, len(found))
    assert set(cropping.crops(found, size)) == set(cropping.crops(shuffled, size))
    assert cropping.union(found, size) == cropping.union(shuffled, size)


@given(boxes, sizes, croppings)
def test_no_two_crops_are_nearly_the_same(found, size, cropping):
    chosen = cropping.crops(found, size)
    assert len(chosen) <= cropping.most
    assert all(iou(a, b) <= cropping.duplicate_iou for i, a in enumerate(chosen) for b in chosen[:i])


def test_margin_and_order_by_hand():
    cropping = Cropping(margin=0.1, smallest=10)
    found = [(500, 100, 600, 300), (10, 20, 110, 60), (500.2, 100, 600, 300)]
    assert cropping.crops(found, (640, 480)) == [(490, 80, 610, 320), (0, 16, 120, 64)]
    assert cropping.union(found, (640, 480)) == (0, 16, 610, 320)


def test_a_small_box_at_the_border_is_shifted_inwards():
    assert Cropping(margin=0, smallest=56).crop((630, 0, 640, 4), (640, 480)) == (584, 0, 640, 56)
    assert Cropping(margin=0, smallest=56).crop((2, 2, 3, 3), (40, 30)) == (0, 0, 40, 30)


def test_of_too_many_the_smallest_are_kept():
    found = [(0, 0, side, side) for side in (400, 100, 300, 200)]
    chosen = Cropping(margin=0, smallest=1, most=2).crops(found, (500, 500))
    assert chosen == [(0, 0, 100, 100), (0, 0, 200, 200)]


@given(boxes_of(st.floats(allow_nan=False, allow_infinity=False)))
def test_any_box_can_be_drawn_and_cropped(found):
    size = (60, 40)
    draw_boxes(Image.new("RGB", size), found, size, ["1"] * len(found))
    for x1, y1, x2, y2 in Cropping().crops(found, size):
        assert 0 <= x1 < x2 <= 60 and 0 <= y1 < y2 <= 40


@pytest.mark.parametrize("size", [(60, 40), (900, 1200)])
def test_a_picture_shows_its_boxes_where_they_are(size):
    box = (size[0] // 4, size[1] // 4, size[0] // 2, size[1] * 3 // 4)
    picture = np.asarray(draw_reply(Image.new("RGB", size, "black"), [box]))
    assert picture.shape[0] * size[0] == pytest.approx(picture.shape[1] * size[1], rel=0.01)
    ys, xs = np.nonzero(picture.sum(-1))
    scale = picture.shape[1] / size[0]
    drawn = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    assert drawn == pytest.approx([c * scale for c in box], abs=1)
