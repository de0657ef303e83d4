"""Pictures for a logger: wide enough, boxes that show on any ground, captions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor

from ivgr.plotting.boxed_picture import GOLD, PREDICTED, TALLEST, WIDTH, boxed_picture

GROUNDS = (
    "black",
    "white",
    "red",
    "lime",
    "green",
    "blue",
    "yellow",
    "magenta",
    "gray",
    "#14a03c",
    "#dc2828",
)
BOX = (30, 20, 90, 70)


def luminance(color):
    """Relative luminance of colours (…, 3) in 0…255, as WCAG 2 defines it."""
    share = np.asarray(color, float) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def contrast(one, other):
    """WCAG's ratio, 1 to 21; 3 is what it asks of a graphical object."""
    one, other = luminance(one) + 0.05, luminance(other) + 0.05
    return np.maximum(one, other) / np.minimum(one, other)


def drawn(ground, **boxes):
    boxes = {"gold": [], "predicted": []} | boxes
    return np.asarray(boxed_picture(Image.new("RGB", (120, 100), ground), caption=["a"], **boxes))


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("kind", ["gold", "predicted"])
def test_a_box_shows_on_any_ground(ground, kind):
    """Measured where it is drawn: along every edge a tone of at least two pixels stands out 3 : 1."""
    picture = drawn(ground, **{kind: [BOX]})
    scale = WIDTH / 120
    x1, y1, x2, y2 = (round(scale * number) for number in BOX)
    middle_x, middle_y = (x1 + x2) // 2, (y1 + y2) // 2
    crossings = {
        "left": picture[middle_y, x1 - 4 : x1 + 20],
        "right": picture[middle_y, x2 - 20 : x2 + 4],
        "top": picture[y1 - 4 : y1 + 20, middle_x],
        "bottom": picture[y2 - 20 : y2 + 4, middle_x],
    }
    for edge, pixels in crossings.items():
        assert (contrast(pixels, ImageColor.getrgb(ground)) >= 3).sum() >= 2, edge


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_no_ground_hides_both_tones_of_a_box(ground):
    for outline in (GOLD, PREDICTED):
        tones = [ImageColor.getrgb(color) for color in (outline.color, outline.edge_color)]
        assert max(contrast(tone, ground) for tone in tones) >= 3


def test_gold_and_predicted_are_told_apart_without_colour():
    assert contrast(*(ImageColor.getrgb(outline.color) for outline in (GOLD, PREDICTED))) >= 3


def test_both_boxes_show_where_they_are_the_same():
    picture = drawn("gray", gold=[BOX], predicted=[BOX])
    for outline in (GOLD, PREDICTED):
        assert (picture == ImageColor.getrgb(outline.color)).all(-1).sum() > 500


@pytest.mark.parametrize("size", [(56, 56), (120, 100), (4000, 300), (300, 4000), (1, 1)])
def test_pictures_are_wide_enough_to_see(size):
    picture = boxed_picture(Image.new("RGB", size, "gray"), [], [], ["what is seen"])
    assert picture.width == WIDTH >= 512
    assert picture.height <= TALLEST + 100


def test_boxes_lie_where_the_image_has_them():
    picture = drawn("white", gold=[BOX])
    rows, columns = np.nonzero((picture == ImageColor.getrgb(GOLD.color)).all(-1))
    scale = WIDTH / 120
    found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert np.allclose(found, np.array(BOX) * scale, atol=GOLD.edge + 1)


def test_a_box_outside_the_image_is_left_out():
    assert (drawn("white", gold=[(200, 200, 300, 300)]) == drawn("white")).all()


def test_the_caption_stands_below_the_image_and_is_cut_where_it_is_long():
    image = Image.new("RGB", (120, 100), "red")
    short, long = (boxed_picture(image, [], [], [text]) for text in ("seen", "seen " * 500))
    height = round(100 * WIDTH / 120)
    below = np.asarray(short)[height:]
    assert (below == 0).all(-1).any() and (below[0] == 255).all()
    assert (np.asarray(short)[:height] == (255, 0, 0)).all()
    assert short.height < long.height < short.height + 100
