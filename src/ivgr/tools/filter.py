"""`ivgr filter`: samples that a policy answers neither always nor never.

In: shards and a policy. Out: pass_rates.jsonl, an id and its rate per line, in the order of the
shards; and shards of the samples whose rate lies between two bounds.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from ivgr.core.errors import UserError
from ivgr.core.printable import in_line, progress_bar
from ivgr.core.prompts import SINGLE, Prompts
from ivgr.core.query import Query, rollouts_of
from ivgr.core.resumable_jsonl import ResumableJsonl
from ivgr.core.sample import Sample, read_sample
from ivgr.core.seeding import derive_seed
from ivgr.core.settings import (
    AtLeastTwo,
    Dtype,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Seed,
    Share,
    checked,
)
from ivgr.data.shards import find_shards, read_shards, refuse_overlap, replace_shards, validate_shards
from ivgr.judge import Judge, RulesAlone
from ivgr.models.pretrained import Pretrained
from ivgr.rewards.accuracy import prepare
from ivgr.rewards.rewards import Rewards
from ivgr.rewards.scorer import Scorer
from ivgr.rollout.sampling import SamplingConfig
from ivgr.rollout.transformers_engine import TransformersEngine
from ivgr.tools.inference.load_policy import gpu_or_cpu, policy_and_encoder

Respond = Callable[[list[Sample], int], list[Query]]


@checked("filter: --")
def filter_shards(
    shards: str,
    dst: Path,
    policy: str = "tiny",
    copies: AtLeastTwo = 8,
    lowest: Share = 0.1,
    highest: Share = 0.9,
    stream: Literal["textual", "grounded"] = "textual",
    judge: Judge | None = None,
    prompts: Prompts = Prompts(),
    temperature: PositiveFloat = 1.0,
    top_p: PositiveShare = 0.99,
    max_new_tokens: PositiveInt = 1024,
    dtype: Dtype = "float32",
    batch: PositiveInt = 64,
    seed: Seed = 0,
    per_shard: PositiveInt = 500,
) -> None:
    """Keep the samples that a policy answers rightly sometimes, but not always.

    Of several tries some, but not all, must be right and in form. A call
    that was interrupted goes on from DST/pass_rates.jsonl; other bounds use it too.

    Args:
        shards: The samples: a glob, a folder or a brace range.
        dst: Where pass_rates.jsonl goes, and the kept samples as train-000000.tar, …
        policy: HF directory, hub id or "tiny".
        copies: Tries per sample, at least 2.
        lowest: Lowest share of good tries that is kept.
        highest: Highest share of good tries that is kept.
        stream: Stream in which paired samples are asked; single ones are asked as ever.
        judge: Decides where no rule matches an answer; without one that is wrong.
        prompts: Instructions of the two streams.
        temperature: Sampling temperature.
        top_p: Nucleus kept when sampling.
        max_new_tokens: Longest response.
        dtype: Weight dtype.
        batch: Samples asked and saved together.
        seed: Seed of the sampling.
        per_shard: Samples per shard.
    """
    if lowest > highest:
        raise UserError(f"filter: --lowest is {lowest}, must be at most --highest, which is {highest}")
    refuse_overlap(shards, dst)
    paths = find_shards(shards)
    total = validate_shards(paths).total()
    settings = {
        "shards": paths, "policy": policy, "copies": copies, "stream": stream,
        "judge": judge and type(judge).__name__, "prompts": vars(prompts),
        "temperature": temperature, "top_p": top_p,
        "max_new_tokens": max_new_tokens, "dtype": dtype, "batch": batch, "seed": seed,
    }  # fmt: skip
    sampling = SamplingConfig(
        group_size=copies, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens
    )
    engine = TransformersEngine(sampling, batch)
    journal = ResumableJsonl(dst, "pass_rates", settings)
    if len(journal.rows) < total:
        respond = make_respond(Pretrained(policy, dtype), engine, prompts, stream)
        measure_rates(paths, total, journal, respond, judge or RulesAlone(), batch, seed)
    rates = [row["rate"] for row in journal.rows]
    _print_rates(rates, lowest, highest)
    if judge is None:
        print("no judge is named: an answer that no rule matched counts as wrong")
    if given_up := sum(row.get("given_up", 0) for row in journal.rows):
        print(f"the mathematics of {given_up} answers took too long to compare: not equal")
    if not any(lowest <= rate <= highest for rate in rates):
        raise UserError(f"filter: no rate lies in [{lowest}, {highest}]; widen the bounds ({journal.path})")
    replace_shards(dst, select(paths, journal.rows, lowest, highest), per_shard)


def make_respond(source: Pretrained, engine: TransformersEngine, prompts: Prompts, stream: str) -> Respond:
    """Asks the policy of `source`, on a GPU if there is one: samples and a seed → queries with
    their rollouts, paired ones in `stream`."""
    policy, encoder = policy_and_encoder(source, prompts)
    policy.to(gpu_or_cpu())  # pyright: ignore[reportArgumentType]

    def respond(samples: list[Sample], seed: int) -> list[Query]:
        queries = [encoder(sample, (stream if sample.kind == "paired" else SINGLE,)) for sample in samples]
        engine.roll_out(policy, encoder.processor.tokenizer, queries, seed)
        return queries

    return respond


def measure_rates(
    shards: list[str],
    total: int,
    journal: ResumableJsonl,
    respond: Respond,
    judge: Judge,
    batch: int,
    seed: int,
) -> None:
    """Adds the rows that `journal` lacks of the `total` samples, by whole batches, each with a
    seed of its own: an interrupted measurement ends as an unbroken one."""
    journal.keep(len(journal.rows) // batch * batch)
    done = len(journal.rows)
    samples = islice(map(read_sample, read_shards(shards)), done, None)
    with progress_bar(Console()) as bar:
        task = bar.add_task("pass rates", total=total, completed=done)
        for index in range(done // batch, -(-total // batch)):
            asked = list(islice(samples, batch))
            prepare(asked)
            queries = respond(asked, derive_seed(seed, "filter", index))
            rates = zip(queries, pass_rates(queries, judge), strict=True)
            journal.append([_row(query, rate) for query, rate in rates])
            bar.advance(task, len(queries))


def _row(query: Query, rate: float) -> dict:
    """The journal line; given_up, where there are any, counts the answers whose mathematics took too
    long to compare."""
    given_up = sum(rollout.given_up for rollout in rollouts_of([query]))
    return {"id": query.sample.id, "rate": rate} | ({"given_up": given_up} if given_up else {})


def pass_rates(queries: list[Query], judge: Judge) -> list[float]:
    """The mean of R_format · R_acc over each query's rollouts; an answer without the judge's
    verdict counts as wrong."""
    Scorer(Rewards(), judge).score_answers(queries)
    passed = [[r.terms["format"] * r.terms.get("accuracy", 0.0) for r in rollouts_of([q])] for q in queries]
    return [sum(own) / len(own) for own in passed]


def select(shards: list[str], rows: list[dict], lowest: float, highest: float) -> Iterator[Sample]:
    """The samples whose rate lies in [lowest, highest]; `rows` are in the order of `shards`."""
    for sample, row in zip(map(read_sample, read_shards(shards)), rows, strict=True):
        if sample.id != row["id"]:
            raise UserError(
                f"pass_rates.jsonl: it has {in_line(row['id'])} where the shards now hold "
                f"{in_line(sample.id)}; choose another folder"
            )
        if lowest <= row["rate"] <= highest:
            yield sample


def _print_rates(rates: list[float], lowest: float, highest: float) -> None:
    below, above = sum(rate < lowest for rate in rates), sum(rate > highest for rate in rates)
    table = Table("pass rate", "samples")
    table.add_row(f"below {lowest:g}", str(below))
    table.add_row(f"{lowest:g} to {highest:g}, kept", str(len(rates) - below - above))
    table.add_row(f"above {highest:g}", str(above))
    Console().print(table)
