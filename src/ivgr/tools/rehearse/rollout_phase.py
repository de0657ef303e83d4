"""The rollout of a rehearsal: drives the recipe's own engine by `roll_out`, to its own max_new_tokens.

The engine takes the room that a GPU of the size asked for would leave it. The prompts that have room at first
are prefilled and decoded to the end. Of the decoding steps some are run, the first STEPS and every
STRIDE-th, with the cache as full as it is then; in the others only what the engine keeps account of goes on.
What the other prompts take is multiplied out.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ivgr.core.query import Query, Rollout
from ivgr.rollout import room
from ivgr.rollout.branches import Branches
from ivgr.rollout.responses import Responses
from ivgr.rollout.sampling import SamplingConfig
from ivgr.rollout.transformers_engine import RolloutEngine
from ivgr.tools.plan.plan import HEADROOM
from ivgr.tools.rehearse.phases import Phases

STEPS, STRIDE = 16, 64


class RehearsedEngine:
    """Rolls out the prompts that have room in a GPU of `limit` bytes, and gives all of them responses as long
    as they may be."""

    def __init__(self, engine: RolloutEngine, phases: Phases, limit: float) -> None:
        self.engine: Any = engine
        self.phases = phases
        self.limit = limit
        self.steps = self.run = self.together = 0

    @property
    def sampling(self) -> SamplingConfig:
        return self.engine.sampling

    def answer(self, *_: Any) -> None:
        """Is not rehearsed: validation needs no more than a rollout."""

    def roll_out(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: list[Query], seed: int
    ) -> None:
        self.engine.cuda_graphs = False  # each kernel is counted
        branches = sum(len(query.groups) for query in queries) * self.sampling.group_size
        with FirstFill(self.phases, self.limit) as first:
            self.engine.roll_out(model, tokenizer, queries, seed)
        self.steps, self.run, self.together = first.steps, first.run, first.together
        for name in ("rollout_prefill", "rollout_decode"):
            self.phases.repeat(name, branches / first.together)
        length = self.sampling.max_new_tokens
        for group in (group for query in queries for group in query.groups):
            for number in range(self.sampling.group_size):
                none = torch.zeros(length)
                group.rollouts[number:] = [Rollout(none.long(), none, none, "", truncated=True)]


class FirstFill:
    """In its body the engine decodes the branches that it seats at first, and some steps stand for all."""

    def __init__(self, phases: Phases, limit: float) -> None:
        self.phases = phases
        self.limit = limit
        self.steps = self.run = self.together = 0
        self.counts: Counter[str] = Counter()
        self.places: Counter[tuple[str, str]] = Counter()
        self.stack = ExitStack()
        self.begun: list[Responses] = []

    def __enter__(self) -> "FirstFill":
        self.parts = {name: getattr(Branches, name) for name in ("_fill", "_begin", "_step")}
        unfinished = Responses.unfinished

        def once(responses: Responses) -> list[int]:
            new = responses not in self.begun
            self.begun.append(responses)
            return unfinished(responses) if new else []

        stand_ins = {name: getattr(self, name) for name in self.parts}
        for name, stand_in in stand_ins.items():
            bound = lambda branches, *rest, stand_in=stand_in: stand_in(branches, *rest)  # noqa: E731
            self.stack.enter_context(patch.object(Branches, name, bound))
        self.stack.enter_context(patch.object(Responses, "unfinished", once))
        self.stack.enter_context(patch.object(room, "free_bytes", self._free_bytes))
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.close()

    def _free_bytes(self, device: torch.device) -> float:
        return max(self.limit * (1 - HEADROOM) - torch.cuda.memory_allocated(device), 0)

    def _fill(self, branches: Branches) -> bool:
        """Seats prompts once; those that have no room then, or lose it, are left out."""
        if self.together:
            branches.rows.waiting.clear()
        found = self.parts["_fill"](branches)
        self.together = self.together or len(branches.rows.taken)
        if not found:
            with self.phases.measure("rollout_decode"):
                self.phases.multiply(self.counts, self.places, (self.steps - self.run) / max(self.run, 1))
        return found

    def _begin(self, *arguments: Any) -> None:
        with self.phases.measure("rollout_prefill"):
            self.parts["_begin"](*arguments)

    def _step(self, branches: Branches) -> None:
        step, self.steps = self.steps, self.steps + 1
        if step >= STEPS and step % STRIDE:
            self._skip(branches)
            return
        with self._decoding():
            self.parts["_step"](branches)

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        with self.phases.measure("rollout_decode"):
            self.run += 1
            counts, places = self.phases.counts(), self.phases.integers.places.copy()
            yield
            self.counts += self.phases.counts() - counts
            self.places += self.phases.integers.places - places

    def _skip(self, branches: Branches) -> None:
        """Every response that goes on is a token longer, up to its most."""
        branches.steps += 1
        responses, number = branches.responses, branches.number
        responses.length[number] += branches.going_on.long()
        branches.going_on &= responses.length[number] < responses.limit
