"""`ivgr ask` and its three modes: against validation's greedy answers, stock `generate` and
scripted policies whose boxes are known."""

import json
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image

from ivgr.cli.main import main
from ivgr.core.prompts import GROUNDED, TEXTUAL, Prompts
from ivgr.core.query import Query, rollouts_of
from ivgr.data.encode import QueryEncoder
from ivgr.rollout.sampling import Sampling, SamplingConfig
from ivgr.rollout.transformers_engine import TransformersEngine
from ivgr.tools.inference.crops import Cropping
from ivgr.tools.inference.modes import encode_png, respond
from ivgr.tools.inference.streaming import TokenPrinter
from ivgr.toy.world import World, draw_samples
from support.command_line import fails
from support.greedy import queries_of, stock_greedy
from support.samples import encode_image, make_rollout, make_sample

GOLD = (120, 60, 300, 190)


@pytest.fixture(scope="module")
def encoder(tiny):
    return QueryEncoder(tiny[1], tiny[0].config.model_type, Prompts())


@pytest.fixture(scope="module")
def scenes():
    return [sample for sample in draw_samples(World("val", 12, seed=5)) if sample.boxes]


@pytest.fixture(scope="module")
def photograph():
    data = pytest.importorskip("skimage.data")
    return Image.fromarray(data.astronaut()).resize((160, 160))


@dataclass
class Script:
    """A policy that writes the gold box in the model's frame, or a fixed text."""

    grounded: str = "<think>at GOLD</think><answer>x</answer>"
    textual: str = "<think>a</think><answer>b</answer>"
    asked: list[Query] = field(default_factory=list)

    def answer(self, model, tokenizer, queries):
        for query in queries:
            (group,) = query.groups
            numbers = query.frame.from_pixels(GOLD, query.sample.open_images()[0].size)
            box = f"<box>[{','.join(map(str, numbers))}]</box>"
            text = self.grounded if group.stream == GROUNDED else self.textual
            group.rollouts.append(make_rollout(text.replace("GOLD", box)))
        self.asked += queries


def scripted(tiny, script, mode, family="qwen2_vl", limit=8192, **fields):
    picture = Image.new("RGB", (430, 250), "white")
    picture.paste("black", GOLD)
    sample = make_sample(kind="single", boxes=(), **{"images": (encode_image(picture, "PNG"),), **fields})
    (reply,) = respond(None, QueryEncoder(tiny[1], family, Prompts(), limit), script, [sample], mode)
    return reply


def test_text_and_grounded_modes_give_validations_greedy_answers(tiny, encoder, scenes):
    engine, queries = TransformersEngine(SamplingConfig(max_new_tokens=72)), list(map(encoder, scenes))
    engine.answer(tiny[0], tiny[1].tokenizer, queries)
    for mode, stream in (("text", TEXTUAL), ("grounded", GROUNDED)):
        replies = respond(tiny[0], encoder, engine, scenes, mode)
        expected = [query.group(stream).rollouts[0] for query in queries]
        assert [reply.text for reply in replies] == [rollout.text for rollout in expected]
        assert [reply.tokens for reply in replies] == [len(rollout.tokens) for rollout in expected]
        assert all(reply.answer and f"<answer>{reply.answer}</answer>" in reply.text for reply in replies)


def test_tool_mode_equals_two_stock_passes(tiny, encoder, scenes, photograph):
    """The second by stock processor and `generate` on original + crops + the one around all."""
    asked = [*scenes[:4], make_sample("photo", kind="single", boxes=(), images=(encode_png(photograph),))]
    replies = respond(tiny[0], encoder, TransformersEngine(SamplingConfig(max_new_tokens=72)), asked, "tool")
    for sample, reply in zip(asked, replies, strict=True):
        query = encoder(sample, (GROUNDED,))
        assert reply.first_pass == stock_greedy(tiny, query, GROUNDED)
        image, size = sample.open_images()[0], sample.open_images()[0].size
        around = Cropping().union(reply.boxes, size)
        rectangles = [r for r in Cropping().crops(reply.boxes, size) if r != around]
        rectangles += [around] if reply.boxes else []
        assert reply.crops == rectangles
        images = sample.images + tuple(encode_png(image.crop(r)) for r in rectangles)
        again = make_sample("again", question=sample.question, kind="single", boxes=(), images=images)
        assert reply.text == stock_greedy(tiny, encoder(again, (TEXTUAL,)), TEXTUAL)
    assert sum(bool(reply.crops) for reply in replies) >= 4


def test_a_batch_is_answered_as_each_alone(tiny, encoder, scenes):
    engine = TransformersEngine(SamplingConfig(max_new_tokens=72))
    together = respond(tiny[0], encoder, engine, scenes[:4], "tool")
    alone = [respond(tiny[0], encoder, engine, [sample], "tool")[0] for sample in scenes[:4]]
    assert [(r.text, r.boxes, r.tokens) for r in together] == [(r.text, r.boxes, r.tokens) for r in alone]


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_boxes_come_back_in_pixels_and_crops_show_what_they_hold(tiny, family):
    script = Script()
    reply = scripted(tiny, script, "tool", family)
    assert reply.boxes == [pytest.approx(GOLD)] and reply.notes == [] and reply.answer == "b"
    assert reply.crops == [(102, 47, 318, 203)]
    crop = script.asked[1].sample.open_images()[1]
    assert crop.size == (216, 156)
    assert (np.asarray(crop) == 0).all(-1).sum() == (300 - 120) * (190 - 60)
    first, second = script.asked
    assert [g.stream for g in first.groups] == [GROUNDED] and len(first.image_grid_thw) == 1
    assert [g.stream for g in second.groups] == [TEXTUAL] and len(second.image_grid_thw) == 2
    assert reply.tokens == 6 and "<box>" in reply.first_pass and "<box>" not in reply.text


def test_the_second_pass_sees_every_original_then_the_crops(tiny):
    first, other = Image.new("RGB", (400, 300), "white"), Image.new("RGB", (200, 100), "blue")
    text = "<think><box>[0,0,250,500]</box> <box>[750,500,1000,1000]</box></think><answer>x</answer>"
    script = Script(text)
    images = tuple(encode_image(image, "PNG") for image in (first, other))
    reply = scripted(tiny, script, "tool", images=images)
    sizes = [image.size for image in script.asked[1].sample.open_images()]
    assert sizes == [(400, 300), (200, 100), (110, 165), (110, 165), (400, 300)]
    assert [(x2 - x1, y2 - y1) for x1, y1, x2, y2 in reply.crops] == sizes[2:]


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("<think>a</think><answer>x</answer>", "no box was written"),
        ("<think><box>[9,9,5,5]</box></think><answer>x</answer>", "1 of 1 boxes are malformed"),
        ("<think><box>[1200,10,1300,20]</box></think><answer>x</answer>", "no box in the image"),
    ],
)
def test_without_a_box_tool_mode_is_text_mode_and_says_so(tiny, text, note):
    script = Script(text)
    reply = scripted(tiny, script, "tool")
    assert reply.crops == [] and reply.answer == "b" and reply.first_pass == text
    assert any(note in said for said in reply.notes) and any("text mode" in said for said in reply.notes)
    alone = Script()
    scripted(tiny, alone, "text")
    for name in ("prefix", "pixel_values"):
        assert torch.equal(getattr(script.asked[1], name), getattr(alone.asked[0], name))


def test_crops_too_many_for_the_prompt_are_left_out_and_that_is_said(tiny):
    reply = scripted(tiny, Script(), "tool", limit=210)
    assert reply.crops == [] and reply.boxes == [pytest.approx(GOLD)] and reply.answer == "b"
    assert "without the crops" in reply.notes[0] and "max_prompt_tokens 210" in reply.notes[0]


def test_a_question_without_an_image_is_answered(tiny):
    class Plain(Script):
        def answer(self, model, tokenizer, queries):
            for query in queries:
                query.groups[0].rollouts.append(make_rollout("<box>[1,1,2,2]</box>"))

    assert scripted(tiny, Plain(), "tool", images=()).crops == []


def test_the_engine_tells_every_token_as_it_is_chosen(tiny, encoder):
    queries, heard = queries_of(encoder, 4), {}

    def listen(branches, tokens):
        for branch, token in zip(branches.tolist(), tokens.tolist(), strict=True):
            heard.setdefault(branch, []).append(token)

    engine = TransformersEngine(SamplingConfig(max_new_tokens=60))
    engine.respond(tiny[0], tiny[1].tokenizer, queries, Sampling(1.0, 0.99), 3, 0, listen)
    assert [heard[n] for n in sorted(heard)] == [r.tokens.tolist() for r in rollouts_of(queries)]


def test_text_is_spoken_in_whole_characters(tiny, monkeypatch):
    tokenizer, out = tiny[1].tokenizer, []
    monkeypatch.setattr(sys, "stdout", type("Out", (), {"write": out.append, "flush": lambda: None}))
    voice, text = TokenPrinter(tokenizer), "The red circle – 漢字, naïve 🙂."
    for token in tokenizer.encode(text):
        voice(torch.tensor([0]), torch.tensor([token]))
    monkeypatch.undo()
    assert "".join(out) == text and len(out) > 8 and "\ufffd" not in "".join(out)


@pytest.fixture
def files(tmp_path, scenes, photograph):
    (tmp_path / "scene.jpg").write_bytes(scenes[0].images[0])
    photograph.save(tmp_path / "photo.png")
    return tmp_path


def ask(capsys, *words):
    main(["ask", *map(str, words)])
    return capsys.readouterr().out


@pytest.mark.parametrize("mode", ["text", "grounded", "tool"])
@pytest.mark.parametrize("name", ["scene.jpg", "photo.png"])
def test_json_is_all_that_is_printed_and_agrees_with_the_picture(capsys, files, tiny, scenes, name, mode):
    """The scene's reply is that of the library; the picture has a box where one was written."""
    image, out = files / name, files / "new" / "out.png"
    printed = ask(
        capsys, "--json", image, scenes[0].question, "--mode", mode, "--save", out, "--max_new_tokens", "72"
    )
    reply = json.loads(printed)
    assert printed.count("\n") == 1 and reply["mode"] == mode and reply["model"] == "tiny"
    assert reply["tokens"] > 0 and reply["seconds"] > 0 and reply["answer"]
    if name == "scene.jpg":
        processor = QueryEncoder(tiny[1], "qwen2_vl", Prompts())
        (own,) = respond(
            tiny[0], processor, TransformersEngine(SamplingConfig(max_new_tokens=72)), scenes[:1], mode
        )
        assert (reply["text"], reply["answer"], reply["reasoning"]) == (own.text, own.answer, own.think)
        assert [pytest.approx(box, abs=0.06) for box in reply["boxes"]] == own.boxes
        assert reply["crops"] == list(map(list, own.crops))
        assert (mode == "text") == (reply["boxes"] == []) and (mode == "tool") == bool(reply["crops"])
    with Image.open(out) as picture:
        columns = min(len(reply["crops"]) + 1, 4)
        width = columns * 372 if mode == "tool" else 480
        assert picture.width == pytest.approx(width, abs=160 if mode != "tool" else 0)


def test_people_read_reasoning_answer_boxes_and_seconds(capsys, files, scenes):
    printed = ask(capsys, files / "scene.jpg", scenes[0].question, "--mode", "tool")
    for said in ("reasoning: ", "box 1: [", "around all boxes: [", "answer: ", " tokens in "):
        assert said in printed
    assert "[grounded]" not in printed and "<think>" not in printed


def test_a_terminal_sees_both_passes_as_they_are_written(capsys, files, scenes, monkeypatch):
    reply = json.loads(ask(capsys, files / "scene.jpg", scenes[0].question, "--mode", "tool", "--json"))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    printed = ask(capsys, files / "scene.jpg", scenes[0].question, "--mode", "tool")
    assert printed.startswith(f"[grounded]\n{reply['first_pass']}\n[textual]\n{reply['text']}\n")
    assert f"\nanswer: {reply['answer']}\n" in printed and "reasoning: " not in printed


def test_several_images_a_seed_and_any_question(capsys, files):
    words = [files / "scene.jpg", files / "photo.png", "null: [which] is *red*?", "--json"]
    sampling, drawn = ["--temperature", "1", "--max_new_tokens", "20", "--seed"], []
    for seed in (1, 1, 2):
        drawn.append(json.loads(ask(capsys, *words, *sampling, seed))["text"])
    assert drawn[0] == drawn[1] != drawn[2]


def test_larger_images_are_shrunk_to_max_pixels(capsys, files, photograph):
    photograph.resize((640, 640)).save(files / "large.png")
    limits = ["--max_new_tokens", "2", "--max_prompt_tokens", "120"]
    assert "max_prompt_tokens" in fails(capsys, "ask", str(files / "large.png"), "What?", *limits)
    ask(capsys, files / "large.png", "What?", *limits, "--max_pixels", "32400")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["photo.png"], "the last word must be the question"),
        (["photo.png", "scene.jpg"], "scene.jpg is an image"),
        (["What is this?"], "IMAGE..."),
        (["photo.png", " "], "question"),
        (["none.png", "What?"], "none.png"),
        ([".", "What?"], "image . cannot be read"),
        (["note.txt", "What?"], "note.txt"),
        (["photo.png", "What?", "--mode", "loud"], "mode"),
        (["photo.png", "What?", "--model", "/no/such/model"], "--model"),
        (["photo.png", "What?", "--save", "out.gif"], "out.gif"),
        (["photo.png", "What?", "--save", "photo.png"], "photo.png"),
        (["photo.png", "What?", "--save", "note.txt/out.png"], "note.txt"),
        (["photo.png", "What?", "--temperature", "-1"], "--temperature"),
        (["photo.png", "What?", "--cropping.most", "0"], "most"),
        (["photo.png", "What?", "--max_pixels", "9"], "--max_pixels"),
        (["photo.png", "an <|image_pad|>?"], "<|image_pad|>"),
    ],
)
def test_misuse_is_one_line(capsys, files, monkeypatch, words, named):
    monkeypatch.chdir(files)
    (files / "note.txt").write_text("no image")
    before = (files / "photo.png").read_bytes()
    assert named in fails(capsys, "ask", *words)
    assert (files / "photo.png").read_bytes() == before
