"""The runner that turns rows into journal lines: it asks them in batches and scores them by rule, or by a
judge where no rule decides.

In: a `RowFile`, a benchmark, a way to respond. Out: one JSON object per row in the journal, in the
order of the file; an interrupted call goes on after the last whole batch.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ivgr.core.printable import printable, progress_bar
from ivgr.core.rejection import RejectedSample
from ivgr.core.resumable_jsonl import ResumableJsonl
from ivgr.core.sample import Sample
from ivgr.judge import Agreement, Judge
from ivgr.judge.protocol import take_verdicts
from ivgr.tools.benchmarks.benchmarks import Benchmark
from ivgr.tools.benchmarks.fields import Row
from ivgr.tools.benchmarks.rows import RowFile
from ivgr.tools.benchmarks.scoring import GIVEN_UP, REJECTED, RULES, Verdict, mean_best_iou
from ivgr.tools.inference.modes import Reply

Respond = Callable[[list[Sample]], list[Reply]]
NOTHING = Reply("", "", "")


@dataclass(frozen=True)
class BenchmarkRunner:
    """A benchmark in one mode: how its rows are asked and scored, `batch` at a time; openly:
    without their options."""

    benchmark: Benchmark
    respond: Respond
    instruction: str
    judge: Judge | None = None
    batch: int = 64
    openly: bool = False

    def fill(self, journal: ResumableJsonl, rows: RowFile, label: str) -> float:
        """Adds the rows that `journal` lacks; returns the seconds that took."""
        start = time.perf_counter()
        if len(journal.rows) < rows.total:
            journal.keep(len(journal.rows) // self.batch * self.batch)
        named = TextColumn("{task.description}", markup=False)
        columns = (named, BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with progress_bar(Console(), *columns) as bar:
            task = bar.add_task(printable(label), total=rows.total, completed=len(journal.rows))
            left = rows.read(range(len(journal.rows), rows.total))
            while batch := list(islice(left, self.batch)):
                journal.append(self.examine(batch))
                bar.advance(task, len(batch))
        return time.perf_counter() - start

    def examine(self, rows: list[Row]) -> list[dict]:
        """Asks `rows` together and returns their journal lines."""
        samples = [row.ask(self.benchmark, self.openly) for row in rows]
        found = self._ask(rows, samples)
        verdicts = [self._score(*pair) for pair in zip(rows, found, strict=True)]
        replies = [NOTHING if isinstance(reply, RejectedSample) else reply for reply in found]
        verdicts = self._decide(verdicts, samples, replies)
        prompts = [f"{sample.question}\n{self.instruction}" for sample in samples]
        return [_record(*parts) for parts in zip(rows, prompts, replies, verdicts, strict=True)]

    def _ask(self, rows: list[Row], samples: list[Sample]) -> list[Reply | RejectedSample]:
        """The replies; a row with a fault is not asked, and has that in the place of one."""
        whole = [sample for row, sample in zip(rows, samples, strict=True) if not row.fault]
        replies = iter(respond_to_each(self.respond, whole) if whole else ())
        return [RejectedSample(row.fault) if row.fault else next(replies) for row in rows]

    def _score(self, row: Row, reply: Reply | RejectedSample) -> Verdict:
        if isinstance(reply, RejectedSample):
            return Verdict("", False, f"{REJECTED}: {reply}")
        return RULES[self.benchmark.rule](reply.answer, row.gold, row.options)

    def _decide(self, verdicts: list[Verdict], samples: list[Sample], replies: list[Reply]) -> list[Verdict]:
        """The judge's word where no rule decided and something was answered; wrong without a judge."""
        doubtful = [n for n, v in enumerate(verdicts) if v.right is None and replies[n].answer and self.judge]
        asked = [Agreement(samples[n], replies[n].answer) for n in doubtful]
        said = take_verdicts(asked, self.judge.agree(asked)) if self.judge and asked else []
        judged = {
            n: replace(verdicts[n], right=right, why=_by_judge(verdicts[n].why))
            for n, right in zip(doubtful, said, strict=True)
        }
        return [judged.get(n, replace(v, right=bool(v.right))) for n, v in enumerate(verdicts)]


def _by_judge(why: str) -> str:
    return f"{GIVEN_UP}, then the judge" if why == GIVEN_UP else "judge"


def respond_to_each(respond: Respond, samples: list[Sample]) -> list[Reply | RejectedSample]:
    """The replies, with the `RejectedSample` in the place of each sample that cannot be encoded."""
    try:
        return list(respond(samples))
    except RejectedSample as error:
        if len(samples) == 1:
            return [error]
        middle = len(samples) // 2
        return respond_to_each(respond, samples[:middle]) + respond_to_each(respond, samples[middle:])


def _record(row: Row, prompt: str, reply: Reply, verdict: Verdict) -> dict:
    """Returns the journal line; verdict is null if the judge gave none."""
    return {
        "index": row.index,
        "prompt": prompt,
        "first_pass": reply.first_pass,
        "reply": reply.text,
        "reasoning": reply.think,
        "answer": reply.answer,
        "answer_from": reply.answer_from,
        "boxes": [[round(c, 2) for c in box] for box in reply.boxes],
        "verdict": verdict.right,
        "predicted": verdict.predicted,
        "why": verdict.why,
        "gold": row.gold,
        "question": row.question,
        "options": row.options,
        "groups": row.groups,
        "gold_boxes": row.boxes,
        "iou": mean_best_iou(reply.boxes, row.boxes) if row.boxes else None,
        "tokens": reply.tokens,
        "crops": len(reply.crops),
        "notes": reply.notes,
    }
