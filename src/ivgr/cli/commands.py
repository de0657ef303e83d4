"""The tools of `ivgr` that are not training: where the functions lie whose arguments become options.

A command loads its own tool and no other.
"""

from collections.abc import Callable
from importlib import import_module

# A function, or for a tool with commands of its own a mapping of their names to functions.
TOOLS = {
    "ask": "ivgr.tools.inference.ask.ask",
    "synth": "ivgr.toy.synth.synth",
    "pack": "ivgr.tools.packing_data.pack.pack",
    "inspect": "ivgr.tools.packing_data.inspect.inspect",
    "filter": "ivgr.tools.filter.filter_shards",
    "distill": "ivgr.tools.distill.distill.distill",
    "evaluate": "ivgr.tools.benchmarks.evaluate.evaluate",
    "score": "ivgr.tools.benchmarks.score.score",
    "compare": "ivgr.tools.benchmarks.differences.compare",
    "analyse": "ivgr.tools.benchmarks.differences.analyse",
    "scratch": "ivgr.tools.random_checkpoint.scratch",
    "plan": "ivgr.tools.plan.plan.plan",
    "rehearse": "ivgr.tools.rehearse.rehearse.rehearse",
    "archive": "ivgr.tools.archive_table.ARCHIVE",
    "export": "ivgr.trainer.export.export",
    "bench": "ivgr.tools.bench.bench.BENCH",
    "study": "ivgr.tools.study.study.study",
}


def load_tool(name: str) -> Callable | dict[str, Callable]:
    """The tool, or its commands by name."""
    module, _, attribute = TOOLS[name].rpartition(".")
    return getattr(import_module(module), attribute)
