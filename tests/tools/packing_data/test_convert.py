"""What follows from a row: question, kind, check, options."""

import pytest

from ivgr.tools.packing_data.convert import (
    LONGEST_TEXT,
    Rejected,
    convert_row,
    kind_of,
    place_markers,
    read_options,
)
from support.packing import admit
from support.samples import jpeg


@pytest.mark.parametrize(
    ("question", "images", "placed"),
    [
        ("<image>\nWhat?", 1, "What?"),
        ("What?\n<image>", 1, "What?"),
        ("<image><image>\n\nCompare.", 2, "Compare."),
        ("Compare <image> with <image>.", 2, "Compare image 1 with image 2."),
        ("<image> Is it as in <image>?", 2, "Is it as in image 2?"),
        ("What?", 2, "What?"),
        ("What?", 0, "What?"),
    ],
)
def test_image_markers(question, images, placed):
    assert place_markers(question, images) == placed


@pytest.mark.parametrize(("question", "images"), [("<image> a", 0), ("<image> a", 2)])
def test_markers_that_do_not_fit_the_images(question, images):
    with pytest.raises(Rejected, match="image markers"):
        place_markers(question, images)


@pytest.mark.parametrize("layout", ["{q}\nA. a dog\nB. a cat\nC. 3.5 m", "{q} (A) a dog (B) a cat (C) 3.5 m"])
def test_options_are_read_off_the_question(layout):
    assert read_options(layout.format(q="What is it?")) == {"A": "a dog", "B": "a cat", "C": "3.5 m"}


def test_more_than_ten_options_are_read_and_initials_are_none():
    many = "".join(f"\n{letter}. thing {letter}" for letter in "ABCDEFGHIJKL")
    assert list(read_options(f"Which?{many}")) == list("ABCDEFGHIJKL")
    assert read_options("Who?\nA. one by W. Shakespeare\nB. two") == {
        "A": "one by W. Shakespeare",
        "B": "two",
    }


@pytest.mark.parametrize("question", ["Is A. Smith here?", "B. one\nC. two", "A. one\nC. three", "What?"])
def test_no_options_are_made_up(question):
    assert read_options(question) == {}


OPTIONS = "What?\nA. a dog\nB. a cat"


@pytest.mark.parametrize(
    ("row", "check", "answer"),
    [
        ({"problem": OPTIONS, "answer": "B"}, "choice", "B"),
        ({"problem": OPTIONS, "answer": "(B)"}, "choice", "B"),
        ({"problem": OPTIONS, "answer": "B. a cat"}, "choice", "B"),
        ({"problem": OPTIONS, "answer": "A cat"}, "choice", "B"),
        ({"problem": OPTIONS, "answer": "a bird"}, "text", "a bird"),
        ({"problem": "What?", "answer": "B"}, "text", "B"),
        ({"problem": "x?", "answer": "\\frac{1}{2}", "question_type": "math"}, "math", "\\frac{1}{2}"),
        ({"problem": "x?", "answer": "yes", "question_type": "math"}, "text", "yes"),
        ({"problem": "x?", "answer": "3", "datasource": "ours_mmk12"}, "math", "3"),
        ({"problem": "x?", "answer": "1,250.5%", "question_type": "chart_analysis"}, "math", "1,250.5%"),
        ({"problem": "x?", "answer": "2005-2010", "question_type": "chart_analysis"}, "text", "2005-2010"),
        ({"problem": "x?", "answer": "3", "question_type": "general_vqa"}, "text", "3"),
        ({"question": "x?", "answer": 3, "check": "math"}, "math", "3"),
        ({"question": "x?", "answer": "dog", "options": ["cat", "dog"]}, "choice", "B"),
    ],
)
def test_the_check_follows_from_the_row(row, check, answer):
    fields = convert_row(row).fields
    assert (fields["check"], fields["answer"]) == (check, answer)


OURS = ("arxivqa", "mmk12", "thinklite", "tqa", "virl", "wemath_pro", "wemath_std", "docqa", "infoqa")


@pytest.mark.parametrize("source", OURS)
def test_published_sources_without_boxes_are_single(source):
    assert kind_of({"datasource": f"ours_{source}", "target_instances": []}) == "single"


def test_the_kind_follows_from_the_row():
    box = [{"bbox": [0, 0, 1, 1]}]
    assert kind_of({"datasource": "treevgr", "target_instances": []}) == "paired"
    assert kind_of({"datasource": "other", "target_instances": box}) == "paired"
    assert kind_of({"datasource": "other"}) == "single"
    assert kind_of({"kind": "single", "boxes": [[0, 0, 1, 1]]}) == "single"


def test_several_images_keep_their_order(tmp_path):
    for index, color in enumerate([(250, 0, 0), (0, 250, 0)]):
        (tmp_path / f"{index}.jpg").write_bytes(jpeg(color, (64, 64)))
    row = {"question": "<image><image>Which?", "answer": "1", "images": ["1.jpg", "0.jpg"]}
    verdict = admit(tmp_path, **row, boxes=[[0, 0, 9, 9]])
    assert verdict.sample.images == tuple((tmp_path / f"{i}.jpg").read_bytes() for i in (1, 0))


@pytest.mark.parametrize("name", ["question", "answer"])
def test_a_text_beyond_every_prompt_is_rejected(name):
    row = {"question": "q?", "answer": "a", "kind": "single"}
    assert convert_row(row | {name: "x" * LONGEST_TEXT}).fields[name] == "x" * LONGEST_TEXT
    with pytest.raises(Rejected, match=f"{name}: {LONGEST_TEXT + 1} characters"):
        convert_row(row | {name: "x" * (LONGEST_TEXT + 1)})
