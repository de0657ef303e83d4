"""`ivgr rehearse`: one iteration of a recipe's own code on a GPU that does nothing, and whether it fits."""

import json as writer
from pathlib import Path

from ivgr.core.errors import UserError
from ivgr.core.settings import PositiveInt, checked
from ivgr.tools.rehearse import null_gpu

PRETENDED = 400  # GB of the null GPU: a rehearsal goes on past the limit, so that every phase is seen


@checked("rehearse: --")
def rehearse(
    config: Path,
    ranks: PositiveInt | None = None,
    layers: PositiveInt | None = None,
    memory: str | None = None,
    json: Path | None = None,
) -> None:
    """Run one iteration of a config on a GPU that does nothing: bytes, kernels, waits and copies by phase.

    Needs no GPU and no weights, but a C compiler. Exit code 1 when it does not fit.

    Args:
        config: A config of `ivgr fit`.
        ranks: How many GPUs; by default the config's own.
        layers: Cut the language model and the vision tower to so many layers.
        memory: Of one GPU, such as 80GB; by default what the config says, else 80GB.
        json: Write the figures to this file.
    """
    if json is not None and not json.absolute().parent.is_dir():
        raise UserError(f"rehearse: --json {json}: there is no folder {json.parent}; make it first")
    if not null_gpu.is_loaded():
        options = {"config": config, "ranks": ranks, "layers": layers, "memory": memory, "json": json}
        words = [f"--{name}={value}" for name, value in options.items() if value is not None]
        if code := null_gpu.run_on_null_gpu(["rehearse", *words], PRETENDED):
            raise SystemExit(code)
        return
    if not _rehearse(config, ranks, layers, memory, json):
        raise SystemExit(1)


def _rehearse(
    config: Path, ranks: int | None, layers: int | None, memory: str | None, file: Path | None
) -> bool:
    """Rehearses in this process, which runs on the null GPU; returns whether the config fits."""
    import torch

    from ivgr.tools.plan.plan import parse_memory
    from ivgr.tools.rehearse.recipe import read_recipe, stated_memory
    from ivgr.tools.rehearse.rehearsal import rehearse_recipe
    from ivgr.tools.rehearse.report import describe, show

    if not torch.cuda.is_available():
        raise UserError(
            f"rehearse: PyTorch {torch.__version__} does not start on the null GPU; take a build for CUDA 13"
        )
    limit = parse_memory(memory or stated_memory(config), "rehearse")
    recipe = read_recipe(config, ranks, layers, limit)
    found = rehearse_recipe(recipe)
    show(found, recipe, limit)
    figures = describe(found, str(config), limit)
    if file is not None:
        file.write_text(writer.dumps(figures, indent=2) + "\n")
    return figures["fits"]
