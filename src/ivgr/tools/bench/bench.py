"""`ivgr bench`: prints how the contenders did, and writes it as JSON."""

from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ivgr.core.atomic_files import write_json
from ivgr.core.errors import UserError, install_hint, require_package
from ivgr.core.settings import PositiveInt, checked
from ivgr.tools.bench.bench_setting import Setting
from ivgr.tools.bench.data_speed import data
from ivgr.tools.bench.decode_speed import Decode, decode_figures
from ivgr.tools.bench.decoding_kernels import decoding
from ivgr.tools.bench.efficiency import efficiency_of, print_efficiency
from ivgr.tools.bench.evaluation_speed import evaluate
from ivgr.tools.bench.gpu import gpu
from ivgr.tools.bench.kernel_speed import KernelSetting, kernel_figures, missing_roads
from ivgr.tools.bench.measure import Measurement, measure
from ivgr.tools.bench.phases import refill_contenders, rollout_contenders, update_contenders
from ivgr.tools.bench.rehearsed import rehearsed
from ivgr.tools.bench.roofline import plot_roofline, print_kernels


@checked("bench update: --")
def update(setting: Setting = Setting(), repeats: PositiveInt = 7, json: Path | None = None) -> None:
    """Time reference log-probs and one optimizer update: shared prefix against separate rows.

    Args:
        setting: Model, prompts and responses.
        repeats: Rounds; medians are reported.
        json: File for the figures.
    """
    _report(measure(update_contenders(setting), repeats), setting, json)


@checked("bench rollout: --")
def rollout(setting: Setting = Setting(), repeats: PositiveInt = 7, json: Path | None = None) -> None:
    """Time sampling of responses of forced length: shared prefix against separate rows; with
    --setting.lengths, a batch that is refilled against one that is left to run empty.

    Args:
        setting: Model, prompts and responses.
        repeats: Rounds; medians are reported.
        json: File for the figures.
    """
    if setting.lengths is not None:
        _report(measure(refill_contenders(setting), repeats), setting, json)
        return
    contenders = rollout_contenders(setting)
    figures = measure(contenders, repeats)
    seconds = figures["tree"].seconds - figures["prefill"].seconds
    decode = decode_figures(setting, contenders["tree"].model, seconds)
    _report(figures, setting, json, decode=asdict(decode))
    _print_decode(decode)


@checked("bench step: --")
def step(
    setting: Setting = Setting(queries=16, response=36, image_tokens=25),
    long: bool = False,
    repeats: PositiveInt = 3,
    json: Path | None = None,
) -> None:
    """Time a whole iteration on the tiny world against TRL's GRPOTrainer (pip install "ivgr[bench]").

    Args:
        setting: Model and sizes; the questions and instructions are the tiny world's.
        long: Images of 512 tokens.
        repeats: Rounds; medians are reported.
        json: File for the figures.
    """
    if find_spec("trl") is None:
        raise UserError(f"bench step compares with TRL, which is not installed: {install_hint('bench')}")
    from ivgr.tools.bench.step_speed import step_figures

    if long:
        setting = replace(setting, image_tokens=512)
    figures = step_figures(setting, repeats)
    efficiency = efficiency_of(setting, figures["tree"], rows=figures["trl"].tokens)
    _report(figures, setting, json, efficiency=asdict(efficiency))
    print_efficiency(efficiency)


@checked("bench kernels: --")
def kernels(
    setting: KernelSetting = KernelSetting(),
    repeats: PositiveInt = 5,
    json: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Time log-prob and KL from logits and from hidden states, by several roads, against this
    machine's own copy and GEMM speed.

    Args:
        setting: Shape, KL, device and dtype.
        repeats: Rounds; medians are reported.
        json: File for the figures.
        plot: File for a roofline plot (pip install "ivgr[bench]").
    """
    if plot is not None:
        require_package("bench kernels --plot", "matplotlib", "bench")
    for line in missing_roads(setting):
        print(line)
    ceiling, figures = kernel_figures(setting, repeats)
    print_kernels(ceiling, figures)
    if json is not None:
        report = {
            "setting": asdict(setting),
            "ceiling": asdict(ceiling),
            "figures": list(map(asdict, figures)),
        }
        write_json(json, report)
    if plot is not None:
        plot_roofline(ceiling, figures, plot)


def _report(figures: dict[str, Measurement], setting: Setting, path: Path | None, **more) -> None:
    _print(figures)
    if path is not None:
        report = {name: asdict(figure) for name, figure in figures.items()}
        write_json(path, report | more | {"setting": asdict(setting)})


def _print(figures: dict[str, Measurement]) -> None:
    """Prints one row per contender, with ratios to the tree's."""
    tree = figures["tree"]
    table = Table("", "seconds", "× tree", "tokens", "images seen", "peak MiB", "× tree")
    for name, figure in figures.items():
        table.add_row(
            name,
            *_seconds(figure.seconds, tree.seconds),
            str(figure.tokens),
            str(figure.vision_passes),
            f"{figure.peak_bytes / 2**20:.1f}",
            f"{figure.peak_bytes / max(tree.peak_bytes, 1):.2f}",
        )
        if figure.steps is not None and tree.steps is not None:
            table.add_row("  steps", str(figure.steps), f"{figure.steps / tree.steps:.2f}")
        if figure.rollout_seconds is not None and tree.rollout_seconds is not None:
            rest = figure.seconds - figure.rollout_seconds
            table.add_row("  rollout", *_seconds(figure.rollout_seconds, tree.rollout_seconds))
            table.add_row("  the rest", *_seconds(rest, tree.seconds - tree.rollout_seconds))
    Console().print(table)


def _print_decode(decode: Decode) -> None:
    mebibytes = (decode.weight_bytes + decode.cache_bytes) / 2**20
    print(
        f"tree decodes {decode.tokens_per_second:.0f} tokens/s; bandwidth allows "
        f"{decode.ceiling_tokens_per_second:.0f} (a step reads {mebibytes:.1f} MiB of weights, keys and "
        f"values, at {decode.copy_bytes_per_second / 2**30:.1f} GiB/s)"
    )


def _seconds(seconds: float, tree: float) -> tuple[str, str]:
    return f"{seconds:.3f}", f"{seconds / tree:.2f}"


BENCH = {
    "data": data,
    "decoding": decoding,
    "evaluate": evaluate,
    "gpu": gpu,
    "kernels": kernels,
    "rehearsed": rehearsed,
    "step": step,
    "update": update,
    "rollout": rollout,
}
