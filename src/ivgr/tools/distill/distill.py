"""`ivgr distill`: a run's good grounded rollouts become cold-start shards."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import track
from rich.table import Table

from ivgr.core.errors import UserError
from ivgr.core.frame import RELATIVE
from ivgr.core.prompts import GROUNDED, TEXTUAL
from ivgr.core.response import read_think
from ivgr.core.resumable_jsonl import ResumableJsonl
from ivgr.core.settings import NonNegativeFloat, PositiveInt, Seed, Share, checked
from ivgr.data.sft_encode import move_boxes
from ivgr.data.shards import find_shards, refuse_overlap, replace_shards
from ivgr.judge import Judge
from ivgr.rewards.accuracy import prepare
from ivgr.tools.distill.balance import attach_reasoning, parse_ratio, plan_demonstrations
from ivgr.tools.distill.collect import Candidate, RolloutSummary, find_candidates, take_census
from ivgr.tools.distill.keep import KEPT, REASONS, judge_rewrites
from ivgr.tools.distill.rewrite import ChatRewriter, Rewriter
from ivgr.toy import RuleJudge
from ivgr.toy.rule_rewriter import RuleRewriter


@checked("distill: --")
def distill(
    run: Path,
    shards: str,
    dst: Path,
    rewriter: Literal["rule", "chat"] = "rule",
    judge: Judge | None = None,
    k: PositiveInt = 4,
    threshold: Share = 0.3,
    best: PositiveInt = 1,
    consistency: Share = 0.7,
    ratio: str = "32:3",
    seed: Seed = 0,
    base_url: str | None = None,
    model: str | None = None,
    temperature: NonNegativeFloat = 0.0,
    max_tokens: PositiveInt = 2048,
    batch: PositiveInt = 64,
    per_shard: PositiveInt = 500,
) -> None:
    """Write cold-start shards from a run's grounded rollouts that are right and well boxed.

    As they are, and rewritten without boxes. A call that was interrupted goes on from DST/rewrites.jsonl.

    Args:
        run: The run's folder (its trainer.default_root_dir).
        shards: The shards that the run was trained on: a glob, a folder or a brace range.
        dst: Where the shards go, as train-000000.tar, …
        rewriter: "rule" (the tiny world) or "chat" (a model behind --base_url).
        judge: Decides whether a rewrite agrees with its grounded reasoning; by default, for "rule" alone,
            RuleJudge.
        k: Rewrites a rollout.
        threshold: R_box of a rollout must exceed it.
        best: Rollouts a query, the best boxed first.
        consistency: Lowest R_cons of a rewrite that is kept.
        ratio: Grounded to textual demonstrations.
        seed: Of the wordings and of the choice among them.
        base_url: OpenAI-compatible server of the chat rewriter.
        model: Its model name.
        temperature: Its sampling temperature.
        max_tokens: Its longest reply.
        batch: Rollouts rewritten, judged and saved together.
        per_shard: Demonstrations a shard.
    """
    shares = parse_ratio(ratio)
    writer = _make_rewriter(rewriter, base_url, model, temperature, max_tokens)
    judge = _choose_judge(rewriter, judge)
    workshop = RewritePipeline(writer, judge, k, consistency, seed, batch)
    refuse_overlap(shards, dst)
    census = take_census(run, threshold, best)
    candidates = find_candidates(census.best, shards)
    settings = {
        "run": str(run), "rollouts": census.read, "rewriter": rewriter, "model": model,
        "temperature": temperature, "judge": type(judge).__name__, "k": k, "threshold": threshold,
        "best": best, "consistency": consistency, "seed": seed,
    }  # fmt: skip
    journal = ResumableJsonl(dst, "rewrites", settings)
    workshop.fill(journal, candidates)
    _print_census(census, journal, k)
    grounded = [(c.sample.id, move_boxes(c.think, c.frame, RELATIVE)) for c in candidates]
    plan = plan_demonstrations(grounded, _kept(journal), shares, seed)
    replace_shards(dst, attach_reasoning(plan, find_shards(shards)), per_shard)
    written = Counter(stream for texts in plan.values() for reasoning in texts for stream in reasoning)
    print(f"{written[GROUNDED]} grounded and {written[TEXTUAL]} textual demonstrations in {dst}")


def _make_rewriter(
    name: str, base_url: str | None, model: str | None, temperature: float, max_tokens: int
) -> Rewriter:
    if name == "rule":
        return RuleRewriter()
    if base_url is None or model is None:
        raise UserError(
            "distill --rewriter chat needs --base_url (for example http://localhost:8000/v1) and --model"
        )
    from ivgr.judge.chat_client import ChatClient

    return ChatRewriter(ChatClient(base_url, model, temperature=temperature, max_tokens=max_tokens))


def _choose_judge(rewriter: str, judge: Judge | None) -> Judge:
    """The rule rewriter writes the tiny world's sentences alone, which the rule judge reads."""
    if judge is None and rewriter != "rule":
        raise UserError(
            f"distill --rewriter {rewriter} needs --judge, which decides what rewrites are kept "
            "(ivgr.LLMJudge or ivgr.LocalJudge)"
        )
    return judge or RuleJudge()


@dataclass(frozen=True)
class RewritePipeline:
    """Rewrites and judges candidates, `batch` at a time."""

    rewriter: Rewriter
    judge: Judge
    k: int
    consistency: float
    seed: int
    batch: int

    def fill(self, journal: ResumableJsonl, candidates: list[Candidate]) -> None:
        """Adds the rows that `journal` lacks: for each candidate its rewrites with a verdict each."""
        console = Console()
        starts = range(len(journal.rows), len(candidates), self.batch)
        for start in track(starts, "rewriting", console=console, disable=not console.is_terminal):
            journal.append(self._rewrite(candidates[start : start + self.batch]))

    def _rewrite(self, items: list[Candidate]) -> list[dict]:
        prepare(item.sample for item in items)
        responses = self.rewriter.rewrite(items, self.k, self.seed)
        pairs = [(item, text) for item, own in zip(items, responses, strict=True) for text in own]
        verdicts = iter(judge_rewrites(pairs, self.judge, self.consistency))
        return [
            {"id": item.sample.id, "rewrites": [[text, next(verdicts)] for text in own]}
            for item, own in zip(items, responses, strict=True)
        ]


def _kept(journal: ResumableJsonl) -> list[tuple[str, str]]:
    """(id, reasoning) of every rewrite that was kept, each reasoning of a query once."""
    kept = (
        (row["id"], read_think(text))
        for row in journal.rows
        for text, verdict in row["rewrites"]
        if verdict == KEPT
    )
    return list(dict.fromkeys(kept))


def _print_census(census: RolloutSummary, journal: ResumableJsonl, k: int) -> None:
    verdicts = Counter(verdict for row in journal.rows for _, verdict in row["rewrites"])
    table = Table("", "count", title="from rollouts to demonstrations")
    rows = {
        "grounded rollouts read": census.read,
        "qualified": census.qualified,
        "taken, the best of each query": len(census.best),
        "rewrites asked for": k * len(journal.rows),
        "rewritten": verdicts.total(),
        **{f"lost: {reason}": verdicts[reason] for reason in REASONS},
        "kept": verdicts[KEPT],
    }
    for name, count in rows.items():
        table.add_row(name, str(count))
    Console().print(table)
