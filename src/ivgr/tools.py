"""The tools of `ivgr` that are not training: where the functions lie whose arguments become options.

A command loads its own tool and no other.
"""

from collections.abc import Callable
from importlib import import_module

# A function, or for a tool with commands of its own a mapping of their names to functions.
TOOLS = {
    "ask": "ivgr.inference.command.ask",
    "synth": "ivgr.world.command.synth",
    "pack": "ivgr.pack.command.pack",
    "inspect": "ivgr.pack.look.inspect",
    "filter": "ivgr.difficulty.filter_shards",
    "distill": "ivgr.distill.command.distill",
    "evaluate": "ivgr.evaluation.command.evaluate",
    "score": "ivgr.evaluation.score.score",
    "compare": "ivgr.evaluation.differences.compare",
    "analyse": "ivgr.evaluation.differences.analyse",
    "scratch": "ivgr.policy.checkpoint.scratch",
    "plan": "ivgr.plan.command.plan",
    "archive": "ivgr.archive_command.ARCHIVE",
    "export": "ivgr.export.export",
    "bench": "ivgr.bench.command.BENCH",
    "study": "ivgr.study.command.study",
}


def load_tool(name: str) -> Callable | dict[str, Callable]:
    """The tool, or its commands by name."""
    module, _, attribute = TOOLS[name].rpartition(".")
    return getattr(import_module(module), attribute)
