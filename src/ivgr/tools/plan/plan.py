"""`ivgr plan`: does a config fit its GPUs, what does it compute, and how long may it take?"""

import re
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ivgr.core.errors import UserError
from ivgr.core.settings import NonNegativeInt, PositiveFloat, PositiveInt, checked
from ivgr.tools.plan.flops import Work, estimate_work
from ivgr.tools.plan.plan_memory import (
    MemoryItem,
    copy_bytes,
    fit_batch,
    host,
    largest_tree,
    resident,
    rollout,
    trees_at_once,
    update,
)
from ivgr.tools.plan.run_spec import AssumedLengths, RunSpec, read_run

# Left to the driver, the allocator's gaps and communication.
HEADROOM = 0.08
LESS = 0.9  # of a token budget that does not fit, tried next
UNITS = {"GB": 1e9, "GIB": 2**30}


@checked("plan: --")
def plan(
    config: Path,
    gpus: PositiveInt | None = None,
    memory: str = "80GB",
    image_tokens: NonNegativeInt = 2500,
    prompt: PositiveInt = 200,
    instruction: PositiveInt = 40,
    response: PositiveInt = 300,
    tflops: PositiveFloat = 312.0,
    bandwidth: PositiveFloat = 2000.0,
) -> None:
    """Say what a config needs before any GPU is rented; exit code 1 when it does not fit at its limits:
    prompts of model.encoding.max_prompt_tokens, full of images, and responses of max_new_tokens.

    Args:
        config: A config of `ivgr fit`.
        gpus: How many; by default the config's own.
        memory: Of one GPU, such as 80GB.
        image_tokens: For the time, suppose so many tokens for a query's images, after the merge of patches.
        prompt: For the time, suppose so many tokens of question.
        instruction: For the time, suppose so many tokens of a stream's instruction.
        response: For the time, suppose so many tokens per response.
        tflops: Of one GPU in half precision; 312 is an A100's.
        bandwidth: Of one GPU's memory in GB/s; 2000 is an A100's.
    """
    typical = AssumedLengths(image_tokens, prompt, instruction, response)
    limit = parse_memory(memory)
    run = read_run(config, gpus, typical)
    work = estimate_work(as_decoded(run, limit), tflops, bandwidth)
    if not _judge(as_decoded(run.at_limits(), limit), limit, work):
        raise SystemExit(1)


def parse_memory(text: str, command: str = "plan") -> float:
    """Bytes of "80GB", "24 GiB" or "80" (GB), as the --memory of `command`."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(GB|GiB)?\s*", text, re.IGNORECASE)
    if not match or not float(match[1]):
        raise UserError(f"{command} --memory is {text!r}, must be such as 80GB")
    return float(match[1]) * UNITS[(match[2] or "GB").upper()]


def as_decoded(run: RunSpec, limit: float) -> RunSpec:
    """The run with as many queries decoded together as `limit` bytes of memory hold."""
    standing = sum(item.bytes for item in resident(run))
    return fit_batch(run, limit * (1 - HEADROOM) - standing - copy_bytes(run))


def peak_bytes(items: list[MemoryItem]) -> float:
    """Returns the bytes that are resident throughout plus the larger of rollout and update."""
    sums = {
        phase: sum(item.bytes for item in items if item.phase == phase)
        for phase in ("throughout", "rollout", "update")
    }
    return sums["throughout"] + max(sums["rollout"], sums["update"])


def find_misfit(run: RunSpec, limit: float) -> str | None:
    """The first thing that does not fit and the setting that mends it; None if all fits."""
    run, room = as_decoded(run, limit), limit * (1 - HEADROOM)
    for item in resident(run):
        room -= item.bytes
        if room < 0:
            return f"does not fit: {item.name} ({item.bytes / 1e9:.1f} GB a GPU); {_mend_standing(run)}"
    for phase, mend in ((rollout, _mend_rollout), (update, _mend_update)):
        left = room
        for item in phase(run):
            left -= item.bytes
            if left < 0:
                return f"does not fit: {item.name} ({item.bytes / 1e9:.1f} GB a GPU); {mend(run, room)}"
    return None


def _mend_standing(run: RunSpec) -> str:
    if run.gpus > 1 and not run.sharded:
        return "spread it with trainer.strategy fsdp2"
    if not run.rank:
        return "train low-rank adapters (model.trainable.adapter), or shard over more GPUs"
    return "take a smaller model.policy, or shard over more GPUs"


def _mend_rollout(run: RunSpec, room: float) -> str:
    if rollout(run)[0].bytes > room and run.tp_ranks == 1:
        return "raise trainer.strategy.rollout_tensor_parallel, or take GPUs of more memory"
    if rollout(run)[0].bytes > room:
        return "take GPUs of more memory, or a smaller model.policy"
    return "lower model.policy.max_pixels or model.engine.sampling.max_new_tokens, or shard over more GPUs"


def _mend_update(run: RunSpec, room: float) -> str:
    if not run.checkpointing:
        return "set model.trainable.gradient_checkpointing to true"
    budget = largest_tree(run).tokens * trees_at_once(run)
    while (budget := int(budget * LESS)) >= largest_tree(replace(run, token_budget=1)).tokens:
        if sum(item.bytes for item in update(replace(run, token_budget=budget))) <= room:
            return f"set model.update.token_budget to {budget}"
    return "lower model.policy.max_pixels or model.engine.sampling.max_new_tokens, or shard over more GPUs"


def _judge(run: RunSpec, limit: float, work: Work) -> bool:
    """Prints all there is to know; whether the run fits."""
    items = resident(run) + rollout(run) + update(run) + host(run)
    _print(run, items, limit, work)
    complaint = find_misfit(run, limit)
    print(complaint or f"fits: {peak_bytes(items) / 1e9:.1f} of {limit / 1e9:.1f} GB a GPU at the most")
    return complaint is None


def _print(run: RunSpec, items: list[MemoryItem], limit: float, work: Work) -> None:
    console, shape = Console(), run.shape
    trained = f"{run.trained / 1e9:.3f}"
    print(f"{shape.total / 1e9:.3f} billion parameters, {trained} trained, on {run.gpus} GPU(s)")
    prompt, response = run.lengths.prefix + run.lengths.instruction, run.lengths.response
    print(f"at its limits: prompts of {prompt:,} tokens, responses of {response:,}")
    table = Table("phase", "GB a GPU", "share")
    for item in items:
        if item.phase != "host":
            table.add_row(
                f"{item.phase}: {item.name}", f"{item.bytes / 1e9:.3f}", f"{item.bytes / limit:.1%}"
            )
    console.print(table)
    needs = ", ".join(f"{item.name} {item.bytes / 1e9:.1f} GB" for item in items if item.phase == "host")
    print(f"main memory of a node of {run.node_gpus} GPU(s): {needs}")
    print(f"queries decoded together: {run.batch_queries}")
    unit = "step" if run.cold_start else "iteration"
    saved = f", {work.rows:,} without the tree ({work.rows / work.tokens:.1f}x)"
    print(f"tokens an {unit}:".replace("an step", "a step"), f"{work.tokens:,}" + saved)
    print(f"operations: rollout {work.rollout_flops:.2e}, update {work.update_flops:.2e}")
    best, worst = work.seconds
    hours = f"; {best * run.iterations / 3600:.1f} to {worst * run.iterations / 3600:.1f} h for all"
    print(f"time: {best:.0f} to {worst:.0f} s each" + ("" if run.cold_start else hours))
