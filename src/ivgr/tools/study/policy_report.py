"""A finished policy's figures: answers in the three modes, places named, boxes, probes.

In: a policy and held-out shards. Out: a flat mapping by the names of `ivgr.tools.study.variants`. Nothing of
the training is needed, so that policies can be examined anew.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from ivgr.core.errors import UserError
from ivgr.core.prompts import TEXTUAL, Prompts
from ivgr.core.query import Query
from ivgr.core.response import format_reward, read_think
from ivgr.core.sample import Sample
from ivgr.data.encode import QueryEncoder
from ivgr.models.pretrained import Pretrained
from ivgr.rewards.accuracy import read_accuracy
from ivgr.rewards.box_terms import box_reward
from ivgr.rollout.sampling import SamplingConfig
from ivgr.rollout.transformers_engine import TransformersEngine
from ivgr.tools.inference.load_policy import policy_and_encoder
from ivgr.tools.inference.mode_names import MODES, Mode
from ivgr.tools.inference.modes import Reply, respond
from ivgr.tools.probes import measure
from ivgr.tools.probes.loading import read_questions
from ivgr.tools.study.variants import LOCALIZATION
from ivgr.toy.place_accuracy import names_places

BATCH = 64


@dataclass(frozen=True)
class ReportSettings:
    """policy is a HF directory or "tiny"; shards hold the held-out questions, of which the first
    `questions` paired ones are asked and the first `probed` of these probed; prompts are the
    instructions that differ from the usual."""

    policy: str
    shards: str
    questions: int
    probed: int
    max_new_tokens: int
    prompts: dict[str, str]


@torch.no_grad()
def report_on(examination: ReportSettings) -> dict:
    """{"examination": its settings, "figures": by name, "seconds": it took}; greedy."""
    since = time.perf_counter()
    source = Pretrained(examination.policy, "float32")
    policy, encoder = policy_and_encoder(source, Prompts(**examination.prompts))
    engine = TransformersEngine(SamplingConfig(max_new_tokens=examination.max_new_tokens))
    samples = read_enough(examination.shards, examination.questions)
    figures = answer_figures(partial(respond, policy, encoder, engine), encoder, samples)
    figures = probe(policy, encoder, engine, samples[: examination.probed]) | figures
    seconds = time.perf_counter() - since
    return {"examination": asdict(examination), "figures": figures, "seconds": seconds}


def probe(
    policy: PreTrainedModel, encoder: QueryEncoder, engine: TransformersEngine, samples: list[Sample]
) -> dict[str, float | None]:
    """Returns what the probes find in the textual stream; None for a measure that cannot be taken, such as a
    read-out of objects if hardly any is named."""
    return dict.fromkeys(LOCALIZATION) | measure(policy, encoder, engine, samples, TEXTUAL).metrics()


def read_enough(shards: str, count: int) -> list[Sample]:
    """The first `count` sound paired samples; UserError if there are not so many."""
    samples = read_questions(shards, count)
    if len(samples) < count:
        raise UserError(f"study: {shards} holds {len(samples)} sound paired samples, {count} are asked for")
    return samples


def answer_figures(ask: Callable[..., Any], encoder: QueryEncoder, samples: list[Sample]) -> dict[str, float]:
    """Means over `samples` of what `ask(samples, mode)` replies; "twice" is text mode with each sample's
    images shown twice."""
    queries = [encoder(sample, (TEXTUAL,)) for sample in samples]
    twice = [replace(sample, images=sample.images * 2) for sample in samples]
    replies = {mode: _ask_all(ask, samples, mode) for mode in MODES} | {"twice": _ask_all(ask, twice, "text")}
    figures = {
        f"{mode}/{name}": sum(values) / len(values)
        for mode, found in replies.items()
        for name, values in _score_all(queries, found).items()
    }
    wanted = ("accuracy", "format", "length")
    kept = {name: value for name, value in figures.items() if name.split("/")[1] in wanted}
    return kept | {name: figures[name] for name in ("text/place_accuracy", "grounded/iou")}


def _ask_all(ask: Callable[..., Any], samples: list[Sample], mode: Mode) -> list[Reply]:
    starts = range(0, len(samples), BATCH)
    return [reply for start in starts for reply in ask(samples[start : start + BATCH], mode)]


def _score_all(queries: Sequence[Query], replies: Sequence[Reply]) -> dict[str, list[float]]:
    rows = [_score(query, reply) for query, reply in zip(queries, replies, strict=True)]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _score(query: Query, reply: Reply) -> dict[str, float]:
    """Scores as training does (`HeldOutFigures`), with the rule judge, which agrees only to the gold
    answer."""
    well_formed = format_reward(reply.text)
    right = well_formed and read_accuracy(query.sample, reply.text) == 1.0
    return {
        "accuracy": float(right),
        "format": well_formed,
        "length": float(reply.tokens),
        "place_accuracy": float(names_places(query, read_think(reply.text))),
        "iou": box_reward(reply.text, query.boxes),
    }
