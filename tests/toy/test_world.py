import re
import time
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageChops

from ivgr.core.boxes import COLUMNS, ROWS, grid_cell, parse_boxes
from ivgr.rewards.box_terms import box_reward, box_validity
from ivgr.toy.draw_scene import draw_scene
from ivgr.toy.scene import ATTRIBUTES, COLORS, GRID, SHAPES, SIDES, SIZES, Scene, Thing, sample_scene
from ivgr.toy.statements import read_claims, say_attribute, say_box, say_place
from ivgr.toy.tasks import TASKS

calm = settings(deadline=None)
seeds = st.integers(0, 2**32 - 1)
clauses = ["The red circle is ", "the ", "is ", "in the ", "upper left", "upper ", "a circle", "large. "]
clauses += ["at <box>[", "at <box>", "</box>", "[", "]</box>", "1e308", "9", ",", "0,0,1,1"]
HOSTILE = {
    "letters": "the " + "a" * 100_000,
    "boxes left open": "the a is at <box>" * 6_000,
    "digits in a box": "The circle is at <box>[" + "1" * 100_000 + "</box>",
}
paired_kinds = pytest.mark.parametrize("kind", ["attribute", "relation", "describe"])


def scene_of(seed: int, things: int = 4, split: str = "train") -> Scene:
    return sample_scene(np.random.default_rng(seed), things, split)


@cache
def asked(kind: str) -> list:
    """(scene, task) of many seeds, train and val in turn."""
    scenes = [scene_of(seed, 2 + seed % 4, ("train", "val")[seed % 2]) for seed in range(120)]
    tasks = [TASKS[kind](scene, np.random.default_rng(seed)) for seed, scene in enumerate(scenes)]
    pairs = [(scene, task) for scene, task in zip(scenes, tasks, strict=True) if task]
    assert len(pairs) >= 30
    return pairs


def matches(scene: Scene, phrase: str) -> list[Thing]:
    wanted = set(phrase.split()) - {"object", "objects"}
    return [t for t in scene.things if wanted <= {t.color, t.shape, t.size}]


def middle(scene: Scene, phrase: str) -> tuple[int, int]:
    """Twice the centre, so that it is whole, of the one thing that `phrase` fits."""
    [thing] = matches(scene, phrase)
    x1, y1, x2, y2 = scene.box(thing)
    return x1 + x2, y1 + y2


def true_place(scene: Scene, phrase: str) -> str:
    x, y = middle(scene, phrase)
    return f"{ROWS[y * 3 // (2 * scene.height)]} {COLUMNS[x * 3 // (2 * scene.width)]}"


def answer_of(scene: Scene, question: str) -> str:
    """The answer re-derived from the question's words and the scene alone."""
    if found := re.fullmatch(r"What (color|shape) is the (.+)\?", question):
        [thing] = matches(scene, found[2])
        return getattr(thing, found[1])
    if found := re.fullmatch(r"Is the (.+) (?:left or right of|above or below) the (.+)\?", question):
        axis, sides = (0, ("left", "right")) if " left " in question else (1, ("above", "below"))
        a, b = (middle(scene, name)[axis] for name in found.groups())
        return sides[a > b]
    if found := re.fullmatch(r"How many (.+) are there\?", question):
        singular = {"crosses": "cross", **{f"{shape}s": shape for shape in SHAPES}}
        return str(len(matches(scene, singular.get(found[1], found[1]))))
    assert question == "Describe every object."
    return str(len(scene.things))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("width", SIDES)
def test_drawn_pixels_touch_all_four_sides_of_the_box(shape, size, width):
    for i, height in enumerate(SIDES):
        thing = Thing(list(COLORS)[i], shape, size, column=i, row=GRID - SIZES[size])
        scene, empty = Scene(width, height, i, (thing,)), Scene(width, height, i, ())
        assert ImageChops.difference(draw_scene(scene), draw_scene(empty)).getbbox() == scene.box(thing)


@calm
@given(seeds, st.integers(1, 6), st.sampled_from(["train", "val"]))
def test_things_are_distinct_apart_and_drawn_in_their_color(seed, count, split):
    scene = scene_of(seed, count, split)
    image = draw_scene(scene)
    assert image.size == (scene.width, scene.height) and scene.split == split
    assert len({(t.color, t.shape) for t in scene.things}) == len(scene.things) == count
    taken = np.zeros((scene.height, scene.width), int)
    for thing in scene.things:
        x1, y1, x2, y2 = scene.box(thing)
        taken[y1:y2, x1:x2] += 1
        assert 0 <= x1 < x2 <= scene.width and 0 <= y1 < y2 <= scene.height
        assert image.getpixel(((x1 + x2) // 2, (y1 + y2) // 2)) == COLORS[thing.color]
    assert taken.max() == 1


@calm
@given(seeds)
def test_scene_and_drawing_are_decided_by_the_seed(seed):
    assert scene_of(seed) == scene_of(seed) != scene_of(seed + 1)
    assert draw_scene(scene_of(seed)).tobytes() == draw_scene(scene_of(seed)).tobytes()


def test_train_and_val_share_no_arrangement():
    train, val = ({scene_of(seed, 1, split).things for seed in range(400)} for split in ("train", "val"))
    assert not train & val


@calm
@given(seeds, st.integers(2, 5))
def test_listing_the_things_in_another_order_changes_neither_picture_nor_split(seed, count):
    scene = scene_of(seed, count)
    turned = replace(scene, things=scene.things[::-1])
    assert draw_scene(turned).tobytes() == draw_scene(scene).tobytes()
    assert turned.split == scene.split


@pytest.mark.parametrize("kind", TASKS)
def test_gold_answer_follows_from_the_scene(kind):
    assert all(answer_of(scene, task.question) == task.answer for scene, task in asked(kind))


def test_related_things_are_at_least_two_cells_apart():
    for scene, task in asked("relation"):
        axis, side = (0, scene.width) if "left" in task.question else (1, scene.height)
        a, b = (middle(scene, label)[axis] for label in task.labels)
        assert abs(a - b) >= 2 * 2 * side / GRID


@paired_kinds
def test_grounded_reasoning_holds_exactly_the_boxes_of_the_labels(kind):
    for scene, task in asked(kind):
        named = [matches(scene, label) for label in task.labels]
        assert [[scene.box(t) for t in things] for things in named] == [[box] for box in task.boxes]
        sides = (scene.width, scene.height) * 2
        golds = [tuple(c * 1000 / s for c, s in zip(box, sides, strict=True)) for box in task.boxes]
        text = task.reasoning["grounded"]
        assert parse_boxes(text) == golds and box_reward(text, golds) == box_validity(text) == 1
        assert kind != "describe" or len(golds) == len(scene.things)


@paired_kinds
def test_both_streams_claim_the_true_place_of_every_label(kind):
    for scene, task in asked(kind):
        grounded, textual = (read_claims(task.reasoning[stream]) for stream in ("grounded", "textual"))
        truth = {(label, "place", true_place(scene, label)) for label in task.labels}
        assert grounded == textual and {claim for claim in textual if claim[1] == "place"} == truth
        assert kind != "attribute" or task.answer in {value for _, _, value in textual}
        assert "box" not in task.reasoning["textual"]


def test_count_is_a_single_query_that_places_every_counted_thing():
    for _, task in asked("count"):
        assert (task.kind, task.boxes, list(task.reasoning)) == ("single", (), ["textual"])
        assert len(read_claims(task.reasoning["textual"])) == int(task.answer)


@calm
@given(st.tuples(*[st.integers(0, 499)] * 2, *[st.integers(500, 1000)] * 2), st.sampled_from([0.25, 1, 3]))
def test_a_box_and_its_place_in_words_claim_the_same_in_any_frame(box, scale):
    truth, side = {("cross", "place", grid_cell(box))}, 1000 * scale
    assert read_claims(say_place("cross", grid_cell(box))) == truth
    assert read_claims(say_box("cross", tuple(c * scale for c in box)), side, side) == truth


@pytest.mark.parametrize(("attribute", "value"), [(a, v) for a, values in ATTRIBUTES.items() for v in values])
def test_attribute_sentence_is_read_back(attribute, value):
    assert read_claims(say_attribute("large object", value)) == {("large object", attribute, value)}


@pytest.mark.parametrize("end", ["[9,0,1,1]", "[0,0,1e999,1]", "[1,2,3]", "", "upper house", "left upper"])
def test_invalid_box_or_unknown_place_claims_nothing(end):
    assert read_claims(f"The red circle is at <box>{end}</box>. The circle is in the {end}.") == set()


def test_huge_but_finite_box_is_placed():
    assert read_claims("The x is at <box>[1e308,0,1.5e308,1]</box>") == {("x", "place", "upper right")}


@calm
@given(st.text() | st.lists(st.sampled_from(clauses), max_size=30).map("".join))
def test_any_text_claims_only_what_the_world_can_say(text):
    known = {**ATTRIBUTES, "place": [f"{row} {column}" for row in ROWS for column in COLUMNS]}
    assert all(value in known[attribute] for _, attribute, value in read_claims(text))


@pytest.mark.timeout(10)
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_read_quickly(text):
    start = time.process_time()
    assert read_claims(text) == set()
    assert time.process_time() - start < 1
