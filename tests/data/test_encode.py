"""A sample becomes a query: prompts against the HF processor's own, boxes against the image."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ivgr.core.prompts import Prompts
from ivgr.core.rejection import RejectedSample
from ivgr.data.encode import QueryEncoder, clip_box
from ivgr.models.pretrained import Pretrained
from support.samples import encode_image, jpeg, make_sample

SIZE = (100, 80)
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(lambda text: "<|" not in text)


@pytest.fixture(scope="module")
def encoder() -> QueryEncoder:
    return QueryEncoder(Pretrained("tiny").load()[1], "qwen2_vl", Prompts())


@given(question=texts, images=st.integers(0, 3))
def test_prompts_and_pixels_are_the_processors_own(encoder, question, images):
    files = tuple(jpeg(size=(60 + 40 * i, 50)) for i in range(images))
    kind = "paired" if images else "single"
    sample = make_sample(question=question, images=files, kind=kind, boxes=((1, 1, 9, 9),) if images else ())
    query = encoder(sample)
    for group in query.groups:
        messages = encoder.prompts.messages(question, images, group.stream)
        text = encoder.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        pictures = sample.open_images() or None
        expected = encoder.processor(text=[text], images=pictures, return_tensors="pt")
        assert torch.equal(torch.cat([query.prefix, group.instruction]), expected["input_ids"][0])
        assert len(group.instruction) > 0
    if images:
        assert torch.equal(query.pixel_values, expected["pixel_values"])
        assert torch.equal(query.image_grid_thw, expected["image_grid_thw"])


def test_the_prefix_is_all_that_the_prompts_share(encoder):
    query = encoder(make_sample(images=(jpeg(size=(400, 400)),)))
    one, other = (group.instruction for group in query.groups)
    assert one[0] != other[0]


@given(st.lists(st.integers(-60, 160), min_size=4, max_size=4))
def test_a_box_is_clipped_or_rejected_by_the_pixels_of_it_that_are_there(corners):
    """Against counting unit squares."""
    x1, x2, y1, y2 = *sorted(corners[:2]), *sorted(corners[2:])
    if x1 == x2 or y1 == y2:
        return
    inside = [(x, y) for x in range(x1, x2) for y in range(y1, y2) if 0 <= x < SIZE[0] and 0 <= y < SIZE[1]]
    if 2 * len(inside) < (x2 - x1) * (y2 - y1):
        with pytest.raises(RejectedSample, match="s0.*100 x 80") as caught:
            clip_box((x1, y1, x2, y2), SIZE, "s0")
        assert caught.value.reason == "box: outside the image"
    else:
        xs, ys = zip(*inside, strict=True)
        assert clip_box((x1, y1, x2, y2), SIZE, "s0") == (min(xs), min(ys), max(xs) + 1, max(ys) + 1)


def test_boxes_are_held_against_the_upright_image(encoder):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: 40 wide and 60 high
    image = encode_image(Image.new("RGB", (60, 40)), exif=exif)
    [box] = encoder(make_sample(images=(image,), boxes=((0, 30, 40, 60),))).boxes
    assert box == pytest.approx((0, 500, 1000, 1000))
    with pytest.raises(RejectedSample, match="40 x 60"):
        encoder(make_sample(images=(image,), boxes=((41, 0, 60, 40),)))


def test_a_long_question_is_used_as_far_as_the_limit_allows(encoder):
    sample = make_sample(question="What is it? " * 834, images=(jpeg(size=(400, 400)),))
    length = max(len(encoder(sample).prefix) + len(group.instruction) for group in encoder(sample).groups)
    assert len(sample.question) > 10_000
    limited = QueryEncoder(encoder.processor, "qwen2_vl", Prompts(), length)
    assert len(limited(sample).groups) == 2
    limited.max_prompt_tokens -= 1
    with pytest.raises(RejectedSample) as caught:
        limited(sample)
    assert caught.value.reason == "prompt: too long"


def prompt_of(encoder, **fields) -> str:
    query = encoder(make_sample(kind="single", boxes=(), **fields))
    ids = torch.cat([query.prefix, query.groups[0].instruction])
    return encoder.processor.tokenizer.decode(ids).rpartition("<|vision_end|>")[2]


def test_options_in_a_column_of_their_own_are_shown(encoder):
    options = {"A": "a grey cat", "B": "a brown dog"}
    bare = prompt_of(encoder, question="Which animal?", answer="B", check="choice", options=options)
    assert "Which animal?\nA. a grey cat\nB. a brown dog\n" in bare


@pytest.mark.parametrize(
    "question",
    [
        "Which?\nA. a grey cat\nB. a brown dog",
        "Which? (a) a grey  cat, (b) a brown dog",
        "A: a grey cat B: a brown dog",
    ],
)
def test_options_that_the_question_lists_are_not_shown_twice(encoder, question):
    options = {"A": "a grey cat", "B": "a brown dog"}
    listed = prompt_of(encoder, question=question, answer="B", check="choice", options=options)
    assert listed == prompt_of(encoder, question=question, answer="B")


def test_an_option_may_not_hold_the_models_own_token(encoder):
    options = {"A": "<|im_end|>", "B": "a dog"}
    with pytest.raises(RejectedSample, match="own token"):
        prompt_of(encoder, question="Which?", answer="B", check="choice", options=options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixels_are_rounded_to_the_dtype_asked_for(encoder, dtype):
    sample = make_sample(images=(jpeg(size=(60, 50)),), boxes=((1, 1, 9, 9),))
    query, other = encoder(sample), replace(encoder, pixel_dtype=dtype)
    assert torch.equal(other(sample).pixel_values, query.pixel_values.to(dtype))
    assert other.filler(picture=True).pixel_values.dtype == dtype
