"""`ivgr ask`: one question about images, to one policy."""

import os
import sys
import time
from pathlib import Path

from ivgr.core.errors import UserError
from ivgr.core.images import open_image
from ivgr.core.printable import as_json, printable
from ivgr.core.prompts import Prompts
from ivgr.core.regular_files import read_file
from ivgr.core.sample import Sample
from ivgr.core.settings import Dtype, NonNegativeFloat, PositiveInt, PositiveShare, Seed, checked
from ivgr.plotting.pictures import write_sheet
from ivgr.rollout.sampling import SamplingConfig
from ivgr.rollout.transformers_engine import TransformersEngine
from ivgr.tools.inference.crops import Cropping
from ivgr.tools.inference.draw_reply import draw_reply, lay_out, name_crops
from ivgr.tools.inference.load_policy import load_policy
from ivgr.tools.inference.mode_names import Mode
from ivgr.tools.inference.modes import Reply, respond
from ivgr.tools.inference.streaming import StreamingEngine

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
USAGE = 'ivgr ask IMAGE... "QUESTION"'


@checked("ask: --")
def ask(
    words: list[str],
    model: str = "tiny",
    mode: Mode = "text",
    save: Path | None = None,
    json: bool = False,
    temperature: NonNegativeFloat = 0.0,
    top_p: PositiveShare = 1.0,
    seed: Seed = 0,
    max_new_tokens: PositiveInt = 1024,
    max_prompt_tokens: PositiveInt = 32768,
    max_pixels: PositiveInt | None = None,
    dtype: Dtype | None = None,
    cropping: Cropping = Cropping(),
    prompts: Prompts = Prompts(),
) -> None:
    """Ask a policy a question about one image or several; answers appear as they are written.

    Args:
        words: One image or more, then the question; options stand before or after them all.
        model: HF directory, hub id or "tiny".
        mode: "text": reasoning in plain words. "grounded": with a box for every object. "tool": a
            grounded pass, then a textual one that also sees what the boxes hold.
        save: A .png: the first image with the boxes; in tool mode all that was looked at.
        json: Print one JSON object and nothing else.
        temperature: Sampling temperature; 0 takes the likeliest token each time.
        top_p: Nucleus kept when sampling.
        seed: Seed of the sampling.
        max_new_tokens: Longest response, in each pass.
        max_prompt_tokens: Longest prompt, images and crops included.
        max_pixels: The model sees larger images and crops shrunk to this; default: as its processor says.
        dtype: Weight dtype; default: the one that the model is saved in.
        cropping: How boxes become crops in tool mode.
        prompts: Instructions of the two streams.
    """
    paths, question = split_words(words)
    if save is not None:
        _prepare(save, paths)
    sample = read_question(paths, question)
    policy, encoder = load_policy("ask", model, dtype, prompts, max_prompt_tokens, max_pixels)
    stream_reply = not json and sys.stdout.isatty()
    engine = StreamingEngine(
        TransformersEngine(SamplingConfig(max_new_tokens=max_new_tokens)),
        temperature,
        top_p,
        seed,
        stream_reply,
    )
    start = time.perf_counter()
    (reply,) = respond(policy, encoder, engine, [sample], mode, cropping)
    seconds = round(time.perf_counter() - start, 3)
    if json:
        print(to_json(reply, mode, model, seconds))
    else:
        print_reply(reply, stream_reply)
        print(f"{reply.tokens} tokens in {seconds:.1f} s")
    if save is not None:
        _save(save, sample, reply, mode)


def split_words(words: list[str]) -> tuple[list[Path], str]:
    """Image paths and the question, which stands last; UserError if there is no question."""
    *paths, question = words
    named = " " not in question and question.lower().endswith(IMAGES)
    if named or os.path.isfile(question):
        raise UserError(f"ask: the last word must be the question, but {question} is an image: {USAGE}")
    if not paths or not question.strip():
        raise UserError(f"ask: give one image or more, then the question: {USAGE}")
    return list(map(Path, paths)), question


def read_question(paths: list[Path], question: str) -> Sample:
    """A sample of the images at `paths`; UserError names one that cannot be read."""
    images = []
    for path in paths:
        try:
            images.append(read_file(path))
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise UserError(f"ask: image {path} cannot be read ({reason}): {USAGE}") from error
        open_image(images[-1], f"ask: image {path}")
    return Sample(str(paths[0]), question, answer="", kind="single", images=tuple(images))


def _prepare(save: Path, paths: list[Path]) -> None:
    """Makes the folder; UserError, before anything is computed, if `save` will not do."""
    if save.suffix != ".png" or save.is_dir():
        raise UserError(f"ask --save: {save} must be a file that ends in .png")
    if save.resolve() in [path.resolve() for path in paths]:
        raise UserError(f"ask --save: {save} is the image that is asked about; choose another file")
    try:
        save.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"ask --save: there can be no folder {save.parent} ({error.strerror})") from error


def _save(path: Path, sample: Sample, reply: Reply, mode: Mode) -> None:
    images = sample.open_images()
    try:
        if mode == "tool":
            write_sheet(lay_out(images, sample.question, reply), path)
        else:
            draw_reply(images[0], reply.boxes).save(path, "PNG")
    except OSError as error:
        raise UserError(f"ask --save: {path} cannot be written ({error.strerror})") from error


def print_reply(reply: Reply, spoken: bool) -> None:
    """The reply for people; its reasoning only if it was not `spoken` already."""
    if not spoken:
        print(f"reasoning: {printable(reply.think) or '(none)'}")
    for number, box in enumerate(reply.boxes, 1):
        print(f"box {number}: {_round(box)}")
    for name, rectangle in zip(name_crops(reply), reply.crops, strict=True):
        print(f"{name}: {list(rectangle)}")
    for note in reply.notes:
        print(f"note: {printable(note)}")
    print(f"answer: {printable(reply.answer)}")


def to_json(reply: Reply, mode: Mode, model: str, seconds: float) -> str:
    """One line; boxes and crops in pixels of the first image, the last crop around all boxes."""
    fields = {
        "answer": reply.answer, "reasoning": reply.think, "boxes": list(map(_round, reply.boxes)),
        "crops": list(map(list, reply.crops)), "notes": reply.notes,
        "text": reply.text, "first_pass": reply.first_pass, "mode": mode, "model": model,
        "tokens": reply.tokens, "seconds": seconds,
    }  # fmt: skip
    return as_json(fields)


def _round(box: tuple[float, ...]) -> list[float]:
    return [round(c, 1) for c in box]
