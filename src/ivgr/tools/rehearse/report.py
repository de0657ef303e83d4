"""What a rehearsal has found, as tables, as JSON and as a verdict.

In: a `Rehearsal`. Out: text, a mapping, and the line that says what does not fit and what mends it.
"""

from typing import Any

from rich.console import Console
from rich.table import Table

from ivgr.tools.rehearse.phases import NAMES
from ivgr.tools.rehearse.recipe import Recipe
from ivgr.tools.rehearse.rehearsal import Rehearsal

PLACES = 5
FIGURES = ("held", "peak", "reserved", "kernels", "waits", "copies")
MORE_GPUS = "raise trainer.devices (with trainer.strategy ivgr.trainer.FSDP2), or take GPUs of more memory"
ROLLOUT = "lower model.policy.max_pixels or model.engine.sampling.max_new_tokens, or take GPUs of more memory"


def describe(found: Rehearsal, config: str, limit: float) -> dict[str, Any]:
    """The figures as plain data; sizes in bytes."""
    phases = {
        name: {key: getattr(found.figures[name], key) for key in FIGURES}
        for name in NAMES
        if name in found.figures
    }
    return {
        "config": config,
        "phases": phases,
        "decoding": {"branches": found.together, "steps": found.steps[0], "steps_run": found.steps[1]},
        "fits": find_misfit(found, limit) is None,
        "host": {"weights": found.host_weights, "batch": found.host_batch},
        "host_peak_bytes": found.host_peak,
    }


def find_misfit(found: Rehearsal, limit: float) -> str | None:
    """The first phase whose reserved memory is more than `limit` bytes; None if all fit."""
    for name in NAMES:
        if name in found.figures and found.figures[name].reserved > limit:
            return name
    return None


def mend(phase: str, found: Rehearsal, token_budget: int) -> str:
    """The setting that mends a phase that does not fit."""
    if phase.startswith("rollout"):
        return ROLLOUT
    if phase in ("reference", "old_logp", "update"):
        if found.longest_row < token_budget:
            return "lower model.update.token_budget"
        return (
            f"model.update.token_budget {token_budget} is not above one response with its prompt, "
            f"{found.longest_row} tokens: lower model.engine.sampling.max_new_tokens or "
            "model.policy.max_pixels"
        )
    return MORE_GPUS


def show(found: Rehearsal, recipe: Recipe, limit: float) -> None:
    """Prints all there is to know, the verdict last."""
    print("\n".join(_premises(found, recipe)))
    table = Table("phase", "held GB", "peak GB", "reserved GB", "kernels", "host waits", "copies")
    for name in filter(found.figures.__contains__, NAMES):
        one = found.figures[name]
        sizes = [f"{size / 1e9:.2f}" for size in (one.held, one.peak, one.reserved)]
        table.add_row(name, *sizes, *(f"{count:,}" for count in (one.kernels, one.waits, one.copies)))
    Console(width=110).print(table)
    for name in filter(found.figures.__contains__, NAMES):
        _show_lines(name, found)
    print(f"the rehearsal itself took {found.host_peak / 1e9:.1f} GB of main memory")
    phase = find_misfit(found, limit)
    if phase is None:
        most = max(one.reserved for one in found.figures.values())
        print(f"fits: {most / 1e9:.1f} of {limit / 1e9:.1f} GB a GPU at the most")
        return
    one, advice = found.figures[phase], mend(phase, found, recipe.module.update.token_budget)
    taken = f"{one.reserved / 1e9:.1f} of {limit / 1e9:.1f} GB a GPU (its tensors {one.peak / 1e9:.1f})"
    print(f"does not fit: {phase} takes {taken}; {advice}")


def _premises(found: Rehearsal, recipe: Recipe) -> list[str]:
    """What was rehearsed, what stood in, and what was multiplied out."""
    shapes = f"{found.queries} queries of {found.prompt:,} tokens on rank 0 of {recipe.ranks}"
    lines = [
        f"one iteration on a null GPU: {shapes}; the longest tree has {found.longest_tree:,} tokens",
        "no weights are read (the skeleton of the model stands in), rewards are 0 and 1, nothing is written",
    ]
    if found.host_weights:
        lines.append(f"each rank loads {found.host_weights / 1e9:.1f} GB of weights into main memory first")
    if found.steps[0]:
        lines.append(
            f"decoding: {found.together:,} branches at a time, {found.steps[0]:,} steps, of which "
            f"{found.steps[1]} are run; counts are multiplied out for the others and for the other branches"
        )
    seen, ran = found.micro_batches
    lines.append(f"micro-batches: {seen} passes, of which {ran} are run, the others have one's shape")
    return lines


def _show_lines(name: str, found: Rehearsal) -> None:
    """Prints the source lines that hold most at the peak, and those that make the host wait or copy."""
    one = found.figures[name]
    if one.lines:
        print(f"{name}: at the peak, of what it allocates itself")
        for line, size in one.lines:
            print(f"  {size / 1e9:8.2f} GB  {line}")
    if one.places:
        print(f"{name}: waits and copies")
        for (kind, line), count in one.places.most_common(PLACES):
            print(f"  {count:8,} x {kind}  {line}")
