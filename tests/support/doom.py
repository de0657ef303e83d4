"""A judge that brings doom upon a rank: as a rule judge is, but what it was made for befalls the rank in its
second iteration."""

import multiprocessing
import os
import signal
import threading
from functools import wraps
from itertools import count
from typing import Literal

from ivgr.rollout.transformers_engine import TransformersEngine
from ivgr.toy import RuleJudge
from ivgr.trainer.optimizer_step import LightningOptimizerStep

# Where it happens, and at which call (an iteration has two updates).
PLACES = {
    "rollout": (TransformersEngine, "roll_out", 2),
    "scoring": (RuleJudge, "compare", 2),
    "update": (LightningOptimizerStep, "step", 4),
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    threading.Event().wait()


def lose_reader() -> None:
    (reader,) = multiprocessing.active_children()
    reader.kill()


class Doom(RuleJudge):
    """
    Args:
        fate: What happens.
        place: Where.
        rank: To which rank.
    """

    def __init__(
        self,
        fate: Literal["die", "hang", "lose_reader"],
        place: Literal["rollout", "scoring", "update"],
        rank: int = 1,
    ) -> None:
        if rank != int(os.environ.get("RANK", 0)):
            return
        (owner, name, turn), strike = PLACES[place], globals()[fate]
        whole, turns = getattr(owner, name), count(1)

        @wraps(whole)
        def call(*args, **kwargs):
            if next(turns) == turn:
                strike()
            return whole(*args, **kwargs)

        setattr(owner, name, call)
