"""How fast rows of a benchmark are answered: `ivgr evaluate`'s way beside stock `generate`, row by
row, and in batches of the same size padded on the left.

In: how many rows of the tiny world. Out: seconds of each, taken turn about, and whether the
replies are the same.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from ivgr.core.atomic_files import write_json
from ivgr.core.prompts import TEXTUAL, Prompts
from ivgr.core.sample import Sample
from ivgr.core.settings import PositiveInt, checked
from ivgr.data.encode import QueryEncoder
from ivgr.models.forward import banned_ids
from ivgr.models.patch_embed import use_linear_patches
from ivgr.models.pretrained import Pretrained
from ivgr.rollout.sampling import SamplingConfig
from ivgr.rollout.transformers_engine import TransformersEngine
from ivgr.tools.inference.load_policy import gpu_or_cpu, policy_and_encoder
from ivgr.tools.inference.modes import respond
from ivgr.toy.world import World, draw_samples

LOOP, BATCHED, OURS = "generate, row by row", "generate, batches", "ivgr evaluate"
Contender = Callable[[list[Sample]], list[str]]


@dataclass(frozen=True)
class EvaluateFigures:
    """The figures by contender: seconds (median), how many times as long as ours (median over rounds), and
    the share of replies that equal ours word for word."""

    seconds: dict[str, float]
    ratios: dict[str, float]
    same: dict[str, float]


@checked("bench evaluate: --")
def evaluate(
    rows: PositiveInt = 128,
    batch: PositiveInt = 64,
    max_new_tokens: PositiveInt = 100,
    repeats: PositiveInt = 3,
    json: Path | None = None,
) -> None:
    """Time answering rows of a benchmark beside stock `generate`, alone and in batches.

    Args:
        rows: Questions of the tiny world, of all kinds.
        batch: Rows a batch, for both that batch.
        max_new_tokens: Longest reply.
        repeats: Rounds; medians are reported.
        json: File for the figures.
    """
    figures = time_evaluate(rows, batch, max_new_tokens, repeats)
    table = Table("", "seconds", "rows/s", "× ours", "same replies")
    for name, seconds in figures.seconds.items():
        table.add_row(
            name,
            f"{seconds:.2f}",
            f"{rows / seconds:.1f}",
            f"{figures.ratios[name]:.2f}",
            f"{figures.same[name]:.1%}",
        )
    Console().print(table)
    if json is not None:
        setting = {"rows": rows, "batch": batch, "max_new_tokens": max_new_tokens, "repeats": repeats}
        write_json(json, {"setting": setting, **asdict(figures)})


def time_evaluate(rows: int, batch: int, limit: int, repeats: int) -> EvaluateFigures:
    """All contenders on the same samples; a first round of each warms up."""
    samples = list(draw_samples(World("val", rows, seed=1)))
    contenders = evaluate_contenders(batch, limit)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    replies = {}
    for _ in range(repeats + 1):
        for name, contender in contenders.items():
            start = time.perf_counter()
            replies[name] = contender(samples)
            seconds[name].append(time.perf_counter() - start)
    timed = {name: taken[1:] for name, taken in seconds.items()}
    return EvaluateFigures(
        {name: statistics.median(taken) for name, taken in timed.items()},
        {
            name: statistics.median(map(float.__truediv__, taken, timed[OURS]))
            for name, taken in timed.items()
        },
        {name: statistics.mean(map(str.__eq__, texts, replies[OURS])) for name, texts in replies.items()},
    )


def evaluate_contenders(batch: int, limit: int) -> dict[str, Contender]:
    """Samples in, replies out, all of one checkpoint."""
    model, encoder = policy_and_encoder(Pretrained("tiny"), Prompts())
    model.to(gpu_or_cpu())  # pyright: ignore[reportArgumentType]
    use_linear_patches(model)
    engine = TransformersEngine(SamplingConfig(max_new_tokens=limit), batch_queries=batch)
    stock = partial(generate, stock_like(model), encoder.processor, limit)
    return {
        LOOP: lambda samples: in_batches(stock, samples, 1),
        BATCHED: lambda samples: in_batches(stock, samples, batch),
        OURS: lambda samples: in_batches(partial(answer, model, encoder, engine), samples, batch),
    }


def stock_like(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the same checkpoint as transformers loads it."""
    return type(model).from_pretrained(model.config._name_or_path, dtype=model.dtype).eval().to(model.device)  # pyright: ignore[reportArgumentType]


def in_batches(respond_to: Contender, samples: list[Sample], size: int) -> list[str]:
    starts = range(0, len(samples), size)
    return [text for start in starts for text in respond_to(samples[start : start + size])]


@torch.inference_mode()
def answer(
    model: PreTrainedModel, encoder: QueryEncoder, engine: TransformersEngine, samples: list[Sample]
) -> list[str]:
    return [reply.text for reply in respond(model, encoder, engine, samples, "text")]


@torch.no_grad()
def generate(model: Any, processor: Any, limit: int, samples: list[Sample]) -> list[str]:
    """Processor and `generate` as their documentation shows them for a batch."""
    prompts = [Prompts().messages(sample.question, len(sample.images), TEXTUAL) for sample in samples]
    texts = processor.apply_chat_template(prompts, tokenize=False, add_generation_prompt=True)
    images = [sample.open_images() for sample in samples]
    inputs = processor(images=images, text=texts, padding=True, padding_side="left", return_tensors="pt")
    output = model.generate(
        **inputs.to(model.device),
        do_sample=False,
        max_new_tokens=limit,
        suppress_tokens=banned_ids(model),
    )
    written = output[:, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.batch_decode(written, skip_special_tokens=True)
