"""Kernel figures as a table and as a roofline plot (Williams, Waterman and Patterson,
"Roofline", Communications of the ACM 52(4), 2009)."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from ivgr.tools.bench.kernel_speed import Ceiling, KernelTiming


def print_kernels(ceiling: Ceiling, figures: list[KernelTiming]) -> None:
    """Prints one row per case and implementation, with the share of the ceiling that binds the case."""
    print(f"measured ceilings: copy {ceiling.copy / 1e9:.1f} GB/s, GEMM {ceiling.gemm / 1e12:.3f} TFLOP/s")
    table = Table("case", "road", "ms", "rate", "× floor", "share", "MiB", box=None, padding=(0, 1))
    for figure in figures:
        linear = figure.case.startswith("linear")
        work, unit = (figure.flops / 1e9, "GFLOP/s") if linear else (figure.bytes / 1e9, "GB/s")
        table.add_row(
            figure.case,
            figure.road,
            f"{figure.seconds * 1e3:.2f}",
            f"{work / figure.seconds:.3g} {unit}",
            f"{figure.seconds / figure.floor:.2f}",
            f"{figure.floor / figure.seconds:.0%}",
            f"{figure.extra_bytes / 2**20:.1f}",
        )
    Console().print(table)


def plot_roofline(ceiling: Ceiling, figures: list[KernelTiming], path: Path) -> None:
    """Plots FLOP/s over FLOP per byte, both of the least work, under the measured roof."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(8, 5), layout="constrained")
    axes = canvas.subplots()
    intensities = [figure.flops / figure.bytes for figure in figures] + [ceiling.gemm / ceiling.copy]
    span = sorted({min(intensities) / 2, ceiling.gemm / ceiling.copy, max(intensities) * 2})
    axes.loglog(span, [min(ceiling.gemm, ceiling.copy * x) for x in span], "k-", label="measured roof")
    cases = list(dict.fromkeys(figure.case for figure in figures))
    colors = {road: f"C{n}" for n, road in enumerate(dict.fromkeys(f.road for f in figures))}
    for figure in figures:
        axes.loglog(
            figure.flops / figure.bytes,
            figure.flops / figure.seconds,
            "osD^"[cases.index(figure.case)],
            color=colors[figure.road],
            label=f"{figure.case}: {figure.road}",
        )
    axes.set(xlabel="FLOP / byte", ylabel="FLOP / s")
    axes.legend(fontsize="x-small")
    canvas.savefig(path)
