import re
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ivgr.core.prompts import GROUNDED, SINGLE, STREAMS, TEXTUAL, Prompts, streams_of
from ivgr.toy.scene import SIDES, sample_scene
from ivgr.toy.tasks import TASKS
from ivgr.toy.tokenizer import SPECIAL, build_processor

fragments = st.sampled_from([*SPECIAL, " ", "\n", " .", "n't", "<box>[", "]</box>", "é", "🦓", "007"])
WORD = re.compile(r"[A-Za-z]+|[0-9]+|</?(?:think|answer|box)>")
QUESTION = "What color is the large circle?"


@pytest.fixture(scope="module")
def processor():
    return build_processor()


@pytest.fixture(scope="module")
def tokenizer(processor):
    return processor.tokenizer


@cache
def gold_texts() -> list[str]:
    """Every question, answer and gold output that some hundred scenes give."""
    texts = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng, 1 + seed % 5, "train")
        for task in filter(None, (ask(scene, rng) for ask in TASKS.values())):
            texts |= {task.question, task.answer}
            texts |= {
                f"<think>{words}</think>\n<answer>{task.answer}</answer>" for words in task.reasoning.values()
            }
    return sorted(texts)


def chat(processor, stream: str, images: int = 1) -> str:
    messages = Prompts().messages(QUESTION, images, stream)
    return processor.apply_chat_template(messages, add_generation_prompt=True)


def split_words(tokenizer, text: str) -> list[str]:
    """The words and numbers of `text` that no single token covers."""
    spans = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return [
        word[0]
        for word in WORD.finditer(text)
        if not any(start <= word.start() and word.end() <= end for start, end in spans)
    ]


def test_every_word_of_gold_texts_is_one_token(tokenizer):
    assert [split for text in gold_texts() for split in split_words(tokenizer, text)] == []


@pytest.mark.parametrize("stream", STREAMS)
def test_every_word_of_a_prompt_is_one_token(processor, stream):
    assert split_words(processor.tokenizer, chat(processor, stream)) == []


def test_every_coordinate_of_the_frame_is_one_token(tokenizer):
    assert split_words(tokenizer, ",".join(map(str, range(1001)))) == []


def test_unknown_words_are_split(tokenizer):
    assert split_words(tokenizer, "the zebra is red") == ["zebra"]


def test_gold_texts_survive_the_round_trip(tokenizer):
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in gold_texts())


@settings(deadline=None, max_examples=300)
@given(text=st.text() | st.lists(fragments).map("".join))
def test_any_text_survives_the_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("token", SPECIAL)
def test_control_tokens_are_single_and_skipped_on_demand(tokenizer, token):
    ids = tokenizer.encode(f"red{token}circle")
    assert len(ids) == 3
    assert tokenizer.decode(ids, skip_special_tokens=True) == "redcircle"


def test_turn_ends_with_the_eos_token(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id) == "<|im_end|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_vocabulary_is_numbered_without_gaps(tokenizer):
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_processor_survives_saving(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = type(processor).from_pretrained(tmp_path)
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert chat(again, GROUNDED) == chat(processor, GROUNDED)
    assert all(again.tokenizer.encode(t) == processor.tokenizer.encode(t) for t in gold_texts())


@pytest.mark.parametrize("width", SIDES)
@pytest.mark.parametrize("height", [SIDES[0], SIDES[-1]])
def test_image_placeholder_grows_to_one_token_per_merged_patch(processor, width, height):
    batch = processor(text=[chat(processor, TEXTUAL)], images=[Image.new("RGB", (width, height))])
    pads = np.asarray(batch["input_ids"][0]) == processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert pads.sum() == round(width / 28) * round(height / 28)


@pytest.mark.parametrize("images", [0, 1, 3])
def test_prompt_shows_each_image_then_the_question_then_the_instruction(processor, images):
    text = chat(processor, GROUNDED, images)
    shown = "<|vision_start|><|image_pad|><|vision_end|>" * images
    assert f"<|im_start|>user\n{shown}{QUESTION}\n{Prompts().grounded}<|im_end|>" in text
    assert text.endswith("<|im_start|>assistant\n")


def test_streams_share_the_tokens_up_to_the_instruction(processor):
    grounded, textual = (processor.tokenizer.encode(chat(processor, s)) for s in (GROUNDED, TEXTUAL))
    head = processor.tokenizer.encode(chat(processor, GROUNDED).split(Prompts().grounded)[0])
    assert grounded[: len(head)] == textual[: len(head)] == head
    assert grounded != textual


def test_only_the_grounded_prompt_asks_for_boxes(processor):
    assert "<box>" in chat(processor, GROUNDED)
    assert "<box>" not in chat(processor, TEXTUAL)
    assert chat(processor, SINGLE) == chat(processor, TEXTUAL)


def test_paired_queries_run_in_two_streams_and_single_ones_in_one():
    assert streams_of("paired") == (GROUNDED, TEXTUAL)
    assert streams_of("single") == (SINGLE,)
