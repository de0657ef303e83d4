"""Rows become journal lines: asked in batches, scored by rule, a judge for what no rule decides.

In: a `RowFile`, a benchmark, a way to respond. Out: one JSON object a row in the journal, in the
order of the file; an interrupted call goes on after the last whole batch.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice

from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedModel

from ivgr.data.encode import QueryEncoder
from ivgr.data.prompts import GROUNDED, TEXTUAL, Prompts
from ivgr.data.rejection import RejectedSample
from ivgr.data.sample import Sample
from ivgr.evaluation.benchmarks import Benchmark
from ivgr.evaluation.fields import Row
from ivgr.evaluation.rows import RowFile
from ivgr.evaluation.scoring import RULES, Verdict, mean_best_iou, read_reply
from ivgr.journal import Journal
from ivgr.judge import Agreement, Judge
from ivgr.rewards.boxes import Box, parse_boxes
from ivgr.rewards.format import read_think
from ivgr.rollout.engine import RolloutEngine

STREAMS = {"text": TEXTUAL, "grounded": GROUNDED}
REJECTED = "rejected"


@dataclass
class Reply:
    """text: the whole response; boxes: those it wrote, in pixels of the first image; tokens it
    took; crops: pictures that were added to the question."""

    text: str
    boxes: list[Box] = field(default_factory=list)
    tokens: int = 0
    crops: list = field(default_factory=list)


Respond = Callable[[list[Sample]], list[Reply]]


def respond(
    model: PreTrainedModel, encoder: QueryEncoder, engine: RolloutEngine, samples: list[Sample], mode: str
) -> list[Reply]:
    """One greedy reply a sample, in order; RejectedSample if one cannot be encoded."""
    queries = [encoder(sample, (STREAMS[mode],)) for sample in samples]
    engine.answer(model, encoder.processor.tokenizer, queries)
    replies = []
    for query in queries:
        (rollout,) = query.groups[0].rollouts
        written = parse_boxes(rollout.text)
        size = query.sample.open_images()[0].size if written and query.sample.images else (1, 1)
        boxes = [query.frame.to_pixels(box, size) for box in written]
        replies.append(Reply(rollout.text, boxes, len(rollout.tokens)))
    return replies


@dataclass(frozen=True)
class Examination:
    """A benchmark in one mode: how its rows are asked and scored, `batch` at a time; openly:
    without their options."""

    benchmark: Benchmark
    respond: Respond
    instruction: str
    judge: Judge | None = None
    batch: int = 64
    openly: bool = False

    def fill(self, journal: Journal, rows: RowFile, label: str) -> float:
        """Adds the rows that `journal` lacks; returns the seconds that took."""
        start = time.perf_counter()
        if len(journal.rows) < rows.total:
            journal.keep(len(journal.rows) // self.batch * self.batch)
        console = Console()
        with Progress(console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task(label, total=rows.total, completed=len(journal.rows))
            left = rows.read(len(journal.rows)) if len(journal.rows) < rows.total else iter(())
            while batch := list(islice(left, self.batch)):
                journal.append(self._examine(batch))
                bar.advance(task, len(batch))
        return time.perf_counter() - start

    def _examine(self, rows: list[Row]) -> list[dict]:
        samples = [row.ask(self.benchmark, self.openly) for row in rows]
        replies = respond_to_each(self.respond, samples)
        verdicts = self._decide([self._score(row, reply) for row, reply in zip(rows, replies, strict=True)],
                                samples, replies)  # fmt: skip
        prompts = [f"{sample.question}\n{self.instruction}" for sample in samples]
        return [_record(*parts) for parts in zip(rows, prompts, replies, verdicts, strict=True)]

    def _score(self, row: Row, reply: Reply | RejectedSample) -> Verdict:
        if isinstance(reply, RejectedSample):
            return Verdict("", False, f"{REJECTED}: {reply}")
        answer, _ = read_reply(reply.text)
        return RULES[self.benchmark.rule](answer, row.gold, row.options)

    def _decide(self, verdicts: list[Verdict], samples: list[Sample], replies: list) -> list[Verdict]:
        """The judge's word where no rule decided and something was answered; wrong without a judge."""
        answers = ["" if isinstance(r, RejectedSample) else read_reply(r.text)[0] for r in replies]
        doubtful = [n for n, v in enumerate(verdicts) if v.right is None and answers[n] and self.judge]
        said = self.judge.agree([Agreement(samples[n], answers[n]) for n in doubtful]) if doubtful else []
        judged = {
            n: replace(verdicts[n], right=right, why="judge") for n, right in zip(doubtful, said, strict=True)
        }
        return [judged.get(n, replace(v, right=bool(v.right))) for n, v in enumerate(verdicts)]


def respond_to_each(respond: Respond, samples: list[Sample]) -> list[Reply | RejectedSample]:
    """The replies, with the `RejectedSample` in the place of each sample that cannot be encoded."""
    try:
        return respond(samples)
    except RejectedSample as error:
        if len(samples) == 1:
            return [error]
        middle = len(samples) // 2
        return respond_to_each(respond, samples[:middle]) + respond_to_each(respond, samples[middle:])


def _record(row: Row, prompt: str, reply: Reply | RejectedSample, verdict: Verdict) -> dict:
    """The journal line; verdict is null where the judge gave none."""
    said = {} if isinstance(reply, RejectedSample) else vars(reply)
    text, written = said.get("text", ""), said.get("boxes", [])
    answer, source = read_reply(text)
    return {
        "index": row.index,
        "prompt": prompt,
        "reply": text,
        "reasoning": read_think(text).strip(),
        "answer": answer,
        "answer_from": source,
        "boxes": [[round(c, 2) for c in box] for box in written],
        "verdict": verdict.right,
        "predicted": verdict.predicted,
        "why": verdict.why,
        "gold": row.gold,
        "question": row.question,
        "options": row.options,
        "groups": row.groups,
        "gold_boxes": row.boxes,
        "iou": mean_best_iou(written, row.boxes) if row.boxes else None,
        "tokens": said.get("tokens", 0),
        "crops": len(said.get("crops", ())),
    }


def instruction_of(mode: str, prompts: Prompts) -> str:
    """What follows the question in `mode` (in tool mode's second pass, which answers)."""
    return prompts.instruction(STREAMS.get(mode, TEXTUAL))
