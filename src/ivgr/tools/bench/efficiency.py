"""The efficiency of an iteration on its machine, beside what `ivgr plan` predicts.

In: a `Setting` and how long its iteration took. Out: an `Efficiency`.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch

from ivgr.core.settings import dtype_of
from ivgr.tools.bench.bench_setting import Setting, describe_shape, make_optimizer
from ivgr.tools.bench.hardware_limits import gemm_rate
from ivgr.tools.bench.measure import Measurement
from ivgr.tools.plan.flops import estimate_work
from ivgr.tools.plan.model_shape import read_shape
from ivgr.tools.plan.plan_memory import resident, rollout, update
from ivgr.tools.plan.run_spec import AssumedLengths, RunSpec, measure_states

GEMM = {"cuda": 8192, "cpu": 1024}


@dataclass(frozen=True)
class Efficiency:
    """responses_per_second; tokens_per_second: every response's with its prompt's, as trainers
    usually count; update_rate: operations per second of all but the rollout, and gemm_rate: of one
    large product on this machine; planned_bytes: what the plan has above weights and reference,
    and measured_bytes."""

    responses_per_second: float
    tokens_per_second: float
    update_rate: float
    gemm_rate: float
    planned_bytes: float
    measured_bytes: int

    @property
    def utilization(self) -> float:
        """The update's share of what the machine multiplies (MFU: what checkpointing computes again is
        no work)."""
        return self.update_rate / self.gemm_rate


def efficiency_of(setting: Setting, tree: Measurement, rows: int) -> Efficiency:
    """Returns the efficiency of an iteration measured as `tree`; rows counts the tokens of its responses with
    their prompts."""
    run = plan_setting(setting, tree.tokens, rows)
    # Only the operations are read: they do not depend on the GPU that is supposed.
    work = estimate_work(replace(run, checkpointing=False), tflops=1.0, bandwidth=1.0)
    side, dtype = GEMM[torch.device(setting.device).type], dtype_of(setting.dtype)
    square = torch.randn(side, side, device=setting.device, dtype=dtype)
    return Efficiency(
        responses_per_second=2 * setting.group_size * setting.queries / tree.seconds,
        tokens_per_second=rows / tree.seconds,
        update_rate=work.update_flops / (tree.seconds - (tree.rollout_seconds or 0.0)),
        gemm_rate=gemm_rate(square, square, 5),
        planned_bytes=planned_bytes(run),
        measured_bytes=tree.peak_bytes,
    )


def plan_setting(setting: Setting, tree: int, rows: int) -> RunSpec:
    """The setting as `ivgr plan` would read it from a config; tree, rows: tokens of all queries as
    trees and as separate rows, from which the lengths of questions and instructions follow."""
    responses = 2 * setting.group_size
    prompt = rows // (responses * setting.queries) - setting.response
    instruction = tree // setting.queries - responses * setting.response - prompt
    question = prompt - instruction - setting.image_tokens
    typical = AssumedLengths(setting.image_tokens, question, instruction, setting.response)
    weight = dtype_of(setting.dtype).itemsize
    trees = setting.micro_batch or setting.queries
    return RunSpec(
        shape=read_shape(describe_shape(setting)),
        lengths=typical,
        longest=typical,
        cold_start=False,
        gpus=1,
        weight=weight,
        compute=weight,
        states=measure_states(partial(make_optimizer, setting)),
        sharded=False,
        checkpointing=setting.checkpointing,
        rank=setting.adapter,
        frozen_tower=False,
        paired=setting.queries,
        single=0,
        group=setting.group_size,
        updates=1,
        epochs=1,
        iterations=1,
        batch_queries=setting.queries,
        max_new_tokens=setting.response,
        token_budget=trees * typical.tree(2, setting.group_size),
        layout="tree",
    )


def planned_bytes(run: RunSpec) -> float:
    """The peak of the first iteration above what is there before: the optimizer's state is made as it steps,
    when of an update the gradients are left."""
    step = [item for item in resident(run) + update(run) if item.name in ("optimizer", "gradients")]
    return max(sum(item.bytes for item in items) for items in (rollout(run), update(run), step))


def print_efficiency(found: Efficiency) -> None:
    """Prints it in two lines."""
    print(
        f"tree: {found.responses_per_second:.2f} responses/s, {found.tokens_per_second:.0f} tokens/s with "
        f"their prompts; the rest {found.update_rate / 1e12:.3g} TFLOP/s, {found.utilization:.0%} of this "
        f"machine's large product ({found.gemm_rate / 1e12:.3g})"
    )
    print(
        f"memory above weights and reference: {found.measured_bytes / 1e9:.3g} GB, "
        f"by ivgr plan {found.planned_bytes / 1e9:.3g} GB"
    )
