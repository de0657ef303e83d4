"""A process that dies ends all. In: the ranks of a run, each linked with rank 0. Out: where one is gone
or has stopped alone, one line on each of the others, which then end too.

The link is a TCP connection that says nothing until a rank ends. The system closes it when a process
dies, and asks of its own accord whether the other machine is still there: so no rank is taken for dead
because it is slow, or because native code keeps its interpreter busy.
"""

import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from socket import socket
from threading import Event, Lock, Thread, Timer

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus

from ivgr.core.errors import say
from ivgr.core.lightning_private import finished_iterations
from ivgr.core.printable import printable
from ivgr.distributed.links import open_links

# What waits for a rank that is gone fails at once; the news of it comes as fast, or it is another fault.
NEWS = 5.0
# An error that all ranks raise alike reaches them within moments of one another.
GRACE = 15.0
ENDING = Lock()


class Peers(L.Callback):
    """Links the ranks of a run; one process alone has none.

    Args:
        timeout: Seconds for which the machine of another rank may be out of reach.
    """

    def __init__(self, timeout: int) -> None:
        self.timeout = timeout
        self.links: Links | None = None

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """All ranks must call it. UserError if they cannot reach each other."""
        if trainer.world_size == 1:
            return
        rank, broadcast = trainer.global_rank, trainer.strategy.broadcast
        self.links = Links(
            rank,
            open_links(rank, trainer.world_size, broadcast, self.timeout),
            place=lambda: _place(trainer, module),
            advice="go on with --ckpt_path auto" if stage == TrainerFn.FITTING else "run it again",
            leaving=lambda: trainer.state.status == TrainerStatus.INTERRUPTED,
        )

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if self.links:
            self.links.leave("")

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """A collective fails where another rank is gone: then that is the news, not the failure."""
        if self.links:
            if isinstance(exception, RuntimeError) and self.links.told.wait(NEWS):
                end(self.links.trouble)
            self.links.leave(say(exception))


class Links:
    """The links of one `rank`: with rank 0, or of rank 0 with all others, to whom it passes on what it
    hears. A thread for each hears what the other side says, and that it is gone.

    place says where this rank is, advice what to do, leaving whether it is about to end by itself; told
    is set as soon as trouble is the line that tells of another's end.
    """

    def __init__(
        self,
        rank: int,
        links: dict[int, socket],
        place: Callable[[], str],
        advice: str,
        leaving: Callable[[], bool],
    ) -> None:
        self.rank = rank
        self.links = links
        self.place = place
        self.advice = advice
        self.leaving = leaving
        self.ended: set[int] = set()
        self.trouble = ""
        self.told = Event()
        self.lock = Lock()
        os.register_at_fork(after_in_child=self._close)
        for peer in links:
            Thread(target=self._listen, args=(peer,), daemon=True).start()

    def leave(self, why: str) -> None:
        """Tells the others that this rank ends by itself; `why` is empty if its work is done."""
        self._tell(self.rank, why)

    def _listen(self, peer: int) -> None:
        with suppress(OSError, ValueError), self.links[peer].makefile(encoding="utf-8") as lines:
            for line in lines:
                self._hear(*json.loads(line))
        self._hear(peer, None)

    def _hear(self, rank: int, why: str | None) -> None:
        """`rank` has ended: its work is done (empty), it stopped because of `why`, or it is gone (None)."""
        with self.lock:
            if rank in self.ended:
                return
            self.ended.add(rank)
            if self.rank == 0:
                self._tell(rank, why)
            if why == "":
                return
            found = "is gone (killed, or its machine is out of reach)" if why is None else "has stopped"
            because = f": {why}" if why else ", see what it wrote last"
            self.trouble = self.trouble or f"rank {rank} {found}{self.place()}{because}; {self.advice}"
            self.told.set()
        if why is None:
            end(self.trouble)
        else:
            timer = Timer(GRACE, self._end_unless_leaving)
            timer.daemon = True
            timer.start()

    def _end_unless_leaving(self) -> None:
        if not self.leaving():
            end(self.trouble)

    def _tell(self, rank: int, why: str | None) -> None:
        for peer, link in self.links.items():
            if peer != rank:
                with suppress(OSError):
                    link.sendall(json.dumps([rank, why]).encode() + b"\n")

    def _close(self) -> None:
        """Closes the links in a forked child, which would otherwise keep those of a dead process open."""
        for link in self.links.values():
            with suppress(OSError):
                os.close(link.fileno())


def end(line: str) -> None:
    """Ends this process and those that it has started, whatever its main thread waits for."""
    ENDING.acquire()  # which the first to come never lets go of
    with suppress(Exception):
        sys.stdout.flush()
    os.write(2, f"ivgr: error: {printable(line)}\n".encode())
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(1)


def _place(trainer: L.Trainer, module: L.LightningModule) -> str:
    """Returns where this rank is, as far as its main thread has come."""
    if trainer.state.fn != TrainerFn.FITTING:
        return ""
    iteration = finished_iterations(trainer) + 1
    phase = getattr(getattr(module, "rl_step", None), "phase", "")
    return f" in {phase} of iteration {iteration}" if phase else f" at iteration {iteration}"
