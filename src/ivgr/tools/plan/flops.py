"""The computation of a run and its duration: tokens and floating-point operations per iteration, and a range
of seconds on a GPU of a given speed. In: a `RunSpec`. Out: `Work`."""

from dataclasses import dataclass

from ivgr.tools.plan.plan_memory import kv_bytes
from ivgr.tools.plan.run_spec import RunSpec

# Shares of a GPU's peak that training and decoding usually reach: at best, at worst.
TRAINING = (0.5, 0.2)
DECODING = (0.6, 0.15)
# Matrices in fp32 without TF32 run at about this share of the half-precision peak.
FP32_SHARE = 1 / 16


@dataclass(frozen=True)
class Work:
    """tokens, rows: through the policy in one forward pass over an iteration's rollouts, as
    trees and as separate rows; rollout_flops, update_flops; all over all GPUs. seconds: of an
    iteration, at best and at worst."""

    tokens: int
    rows: int
    rollout_flops: float
    update_flops: float
    seconds: tuple[float, float]


def estimate_work(run: RunSpec, tflops: float, bandwidth: float) -> Work:
    """Estimates the work on GPUs of that many TFLOP/s in half precision and that many GB/s."""
    lengths, kinds = run.lengths, ((run.paired, 2), (run.single, 1))
    tokens = sum(count * lengths.tree(streams, run.group) for count, streams in kinds)
    rows = sum(count * lengths.rows(streams, run.group) for count, streams in kinds)
    responses = sum(count * streams * run.group * lengths.response for count, streams in kinds)
    queries = run.paired + run.single
    forward = matrix_flops(run, tokens, responses, queries) + attention_flops(run, tokens, queries)
    # GPUs that roll out together share the layers; the head and the tower each has for all queries.
    repeated = (run.tp_ranks - 1) * matrix_flops(run, 0, responses, queries)
    rollout = 0.0 if run.cold_start else forward + repeated
    update = update_passes(run) * forward
    rate = tflops * 1e12 * (1 if run.compute < 4 else FP32_SHARE)
    decoding = 0.0 if run.cold_start else decoding_bytes(run, queries) / (bandwidth * 1e9)
    best, worst = (
        decoding / decode + (rollout + update) / (rate * train)
        for decode, train in zip(DECODING, TRAINING, strict=True)
    )
    return Work(tokens * run.gpus, rows * run.gpus, rollout * run.gpus, update * run.gpus, (best, worst))


def update_passes(run: RunSpec) -> float:
    """Forward passes that an update is worth: the gradient costs two more, recomputing one more;
    the reference's scores one, the policy's before several updates another."""
    training = (2 if run.rank else 3) + run.checkpointing
    if run.cold_start:
        return training
    return training * run.epochs + 1 + (run.updates * run.epochs > 1)


def matrix_flops(run: RunSpec, tokens: int, responses: int, queries: int) -> float:
    """Two operations per weight: of the layers for every token, of the head for every response's,
    of the vision tower for every patch (of its merger for every few)."""
    shape, patches = run.shape, queries * run.lengths.image_tokens * run.shape.merge
    tower = (shape.tower - shape.merger) * patches + shape.merger * patches // shape.merge
    return 2 * (shape.layers * tokens + shape.hidden * shape.vocabulary * responses + tower)


def attention_flops(run: RunSpec, tokens: int, queries: int) -> float:
    """Two products over what a token sees, half its way on average; over an image's patches, or
    a window's where the tower has windows."""
    shape, lengths = run.shape, run.lengths
    seen = (lengths.prefix + lengths.instruction + lengths.response) / 2
    patches = lengths.image_tokens * shape.merge
    around = shape.tower_window or patches
    tower = shape.tower_depth * shape.tower_width * around * queries * patches
    return 4 * (shape.layers_count * shape.queries * seen * tokens + tower)


def decoding_bytes(run: RunSpec, queries: int) -> float:
    """Read in decoding: each step of a batch reads the layers and the head once, every prompt and
    every half-grown response."""
    lengths, batches = run.lengths, -(-run.tp_ranks * queries // run.batch_queries)
    weights = (run.shape.layers // run.tp_ranks + run.shape.hidden * run.shape.vocabulary) * run.compute
    prompts = queries * (lengths.prefix + 2 * lengths.instruction)
    branches = (2 * run.paired + run.single) * run.group * lengths.response // 2
    return lengths.response * (batches * weights + kv_bytes(run, prompts + branches))
