"""Processes that have imported everything already: forked from a server which this module is imported by.

It starts no thread and computes nothing, so that it can be forked.
"""

import os
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path


def warm_context() -> ForkServerContext:
    """Where the tests' processes come from. The server finds the tests by PYTHONPATH alone."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    forkserver.set_forkserver_preload(["support.warm", "support.warmth"])
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return get_context("forkserver")
