import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivgr.core.boxes import iou, parse_boxes
from ivgr.rewards.box_terms import box_reward, box_validity

calm = settings(deadline=None)
N = 100_000
starts, lengths = st.integers(0, 9), st.integers(1, 9)
cell_boxes = st.builds(lambda x, y, w, h: (x, y, x + w, y + h), starts, starts, lengths, lengths)
cell_box_lists = st.lists(cell_boxes, min_size=1, max_size=4)
finite = st.floats(allow_nan=False, allow_infinity=False)
float_spans = st.lists(finite, min_size=2, max_size=2, unique=True).map(sorted)
float_boxes = st.builds(lambda x, y: (x[0], y[0], x[1], y[1]), float_spans, float_spans)
blanks = st.text(" \t\n", max_size=3)
number_styles = st.sampled_from([repr, "{:.17e}".format, "{:.17E}".format, "{:+.17g}".format])
fragments = st.sampled_from(["<box>", "</box>", "[", "]", ",", " ", "\n", "1", "-2.5", "1e999", "nan", "."])
texts = st.text() | st.lists(fragments, max_size=40).map("".join)
INVALID = [
    "<box>[1,2,3]</box>",
    "<box>[1,2,3,4,5]</box>",
    "<box>1,2,3,4</box>",
    "<box>[a,2,3,4]</box>",
    "<box>[1,2,3,4]",
    "<box>[1 2 3 4]</box>",
    "<box>[0,0,1_0,10]</box>",
    "<box>[1,2,3,4],[5,6,7,8]</box>",
    "<box></box>",
    "<box>[0,0,inf,1]</box>",
    "<box>[nan,0,1,1]</box>",
    "<box>[0,0,1e999,1]</box>",
    "<box>[-1e999,0,1,1]</box>",
    "<box>[5,0,5,1]</box>",
    "<box>[0,5,1,5]</box>",
    "<box>[9,0,1,1]</box>",
    "<box>[0,9,1,1]</box>",
]
HOSTILE = {
    "digits": "<box>[" + "1" * N + "</box>",
    "digits of a fraction": "<box>[1." + "1" * N + "</box>",
    "digits of an exponent": "<box>[1e" + "1" * N + "</box>",
    "blanks": "<box>" + " " * N + "</box>",
    "blanks in brackets": "<box>[" + " " * N + "1" + " " * N + "</box>",
    "signs": "<box>[" + "+-" * (N // 2) + "]</box>",
    "commas": "<box>[" + "1," * (N // 2) + "]</box>",
    "opened": "<box>" * (N // 5),
    "closed": "</box>" * (N // 6),
    "opened with a body": "<box>[1,2,3,4]" * (N // 14),
    "never closed": "<box>" + "x" * N,
    "half tags": "<box" * (N // 4),
}


def write(boxes) -> str:
    return " ".join(f"<box>[{','.join(map(str, box))}]</box>" for box in boxes)


def cells(box) -> set[tuple[int, int]]:
    return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}


def counted_iou(a, b) -> float:
    return len(cells(a) & cells(b)) / len(cells(a) | cells(b))


def counted_reward(written, golds) -> float:
    table = [[counted_iou(box, gold) for gold in golds] for box in written]
    precision = sum(map(max, table)) / len(written)
    recall = sum(map(max, zip(*table, strict=True))) / len(golds)
    return (precision + recall) / 2


@pytest.mark.parametrize(
    "inner",
    ["[100,100,200,200]", "[100, 100, 200, 200]", " [ 100 ,\n100\t,200 , 200 ] ", "[1e2,100.0,+200,2.E2]"],
)
def test_numbers_may_be_spaced_floats_or_exponents(inner):
    assert parse_boxes(f"a <box>{inner}</box> b") == [(100, 100, 200, 200)]


@calm
@given(float_boxes, number_styles, st.lists(blanks, min_size=10, max_size=10))
def test_any_rendered_box_is_read_back_exactly(box, style, gaps):
    numbers = ",".join(gaps[i] + style(value) + gaps[i + 4] for i, value in enumerate(box))
    assert parse_boxes(f"<box>{gaps[8]}[{numbers}]{gaps[9]}</box>") == [box]


@pytest.mark.parametrize("text", INVALID)
def test_invalid_box_is_left_out_and_the_next_one_still_read(text):
    assert parse_boxes(text) == []
    assert parse_boxes(f"{text} <box>[1,2,3,4]</box>") == [(1, 2, 3, 4)]


@calm
@given(st.lists(cell_boxes))
def test_boxes_keep_their_order_and_repetitions(boxes):
    assert parse_boxes(write(boxes)) == boxes


@calm
@given(texts, cell_box_lists)
def test_any_text_gives_only_valid_boxes_and_bounded_rewards(text, golds):
    for x1, y1, x2, y2 in parse_boxes(text):
        assert all(map(math.isfinite, (x1, y1, x2, y2))) and x1 < x2 and y1 < y2
    assert 0 <= box_reward(text, golds) <= 1
    assert 0 <= box_validity(text) <= 1


@pytest.mark.timeout(10)
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_read_quickly(text):
    start = time.process_time()
    assert parse_boxes(text) == []
    assert time.process_time() - start < 1


@calm
@given(cell_boxes, cell_boxes)
def test_iou_counts_cells(a, b):
    assert iou(a, b) == iou(b, a) == pytest.approx(counted_iou(a, b), abs=1e-12)


@calm
@given(cell_boxes, cell_boxes, st.integers(-900, 900), st.integers(-900, 900), st.integers(1, 50))
def test_iou_ignores_translation_and_scale(a, b, dx, dy, scale):
    def move(box):
        return tuple(scale * c + shift for c, shift in zip(box, (dx, dy, dx, dy), strict=True))

    assert iou(move(a), move(b)) == pytest.approx(iou(a, b), abs=1e-12)


@calm
@given(float_boxes, float_boxes)
def test_iou_of_any_finite_boxes_is_between_zero_and_one(a, b):
    assert 0 <= iou(a, b) <= 1


@pytest.mark.parametrize(
    ("written", "golds", "expected"),
    [
        ([(0, 0, 2, 2)], [(0, 0, 2, 2), (5, 5, 9, 9)], (1 / 2 + 1) / 2),
        ([(0, 0, 2, 2), (5, 5, 9, 9)], [(0, 0, 2, 2)], (1 + 1 / 2) / 2),
        ([(0, 0, 2, 1)], [(0, 0, 2, 2)], 1 / 2),
        ([(1, 0, 3, 2)], [(0, 0, 2, 2)], 1 / 3),
        ([(2, 0, 4, 2)], [(0, 0, 2, 2)], 0),
        ([], [(0, 0, 2, 2)], 0),
        ([(0, 0, 2, 2)], [], 0),
    ],
)
def test_box_reward_closed_forms(written, golds, expected):
    assert box_reward(write(written), golds) == pytest.approx(expected)


@calm
@given(cell_box_lists, cell_box_lists)
def test_box_reward_matches_counted_cells(written, golds):
    assert box_reward(write(written), golds) == pytest.approx(counted_reward(written, golds))


@calm
@given(cell_box_lists, cell_box_lists, st.randoms(use_true_random=False))
def test_box_reward_ignores_order(written, golds, random):
    before = box_reward(write(written), golds)
    random.shuffle(written)
    random.shuffle(golds)
    assert box_reward(write(written), golds) == pytest.approx(before)


@calm
@given(cell_box_lists, cell_box_lists, st.lists(st.sampled_from(INVALID), min_size=1, max_size=4))
def test_invalid_boxes_leave_the_reward_and_lower_validity(written, golds, invalid):
    clean = write(written)
    littered = f"{clean} {' '.join(invalid)}"
    assert box_reward(littered, golds) == box_reward(clean, golds)
    share = len(written) / (len(written) + len(invalid))
    assert box_validity(littered) == pytest.approx(box_validity(clean) * share)


def test_validity_is_zero_without_boxes():
    assert box_validity("no boxes") == 0


@pytest.mark.parametrize("first", range(5))
@pytest.mark.parametrize("second", range(5))
def test_near_duplicates_are_found_at_any_two_positions(first, second):
    boxes = [(200 * i, 0, 200 * i + 100, 100) for i in range(5)]
    boxes[second] = (200 * first, 0, 200 * first + 100, 91)
    assert box_validity(write(boxes)) == (1 if first == second else 0)


def test_iou_of_exactly_the_threshold_is_no_duplicate():
    assert box_validity(write([(0, 0, 10, 10), (0, 0, 10, 9)])) == 1
    assert box_validity(write([(0, 0, 10, 10), (0, 0, 10, 9)]), duplicate_iou=0.85) == 0
