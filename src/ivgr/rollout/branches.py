"""Branches that decode together: the prefill of their prompts, their KV cache, and the decoding steps. A
branch that has ended makes room for the next prompt's.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from ivgr.kernels.dispatch import uses_triton
from ivgr.models.forward import hidden_states
from ivgr.packing.prefix_tree import Pack, pack_queries
from ivgr.rollout.batch_rows import BatchRows, Seated
from ivgr.rollout.cuda_graph import CUDAGraphStep
from ivgr.rollout.fused_step import FusedStep, fits_fused_step
from ivgr.rollout.prefix_kv_cache import CacheSize, TreeCache
from ivgr.rollout.responses import Responses

# Rows that nobody is left for leave the batch together, once no more than this share is still decoding:
# leaving copies the cache.
KEEP = 0.75
# Tokens of prompts that are prefilled in one pass.
PREFILL = 16384

# Hears every step: the responses (A,) that are still being written, and the token (A,) chosen for each.
Listener = Callable[[torch.Tensor, torch.Tensor], None]


class Branches:
    """The decoding of a batch of R rows, each with its response, token, next rotary position and logits.

    Args:
        model: The policy.
        responses: What is written.
        rows: Which prompts come into which rows.
        size: Room of the cache.
        interval: Steps after which ended branches are looked for; looking waits for the GPU.
        graphs: Whether a step is launched as one CUDA graph.
        listener: Hears every token as it is chosen.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        responses: Responses,
        rows: BatchRows,
        size: CacheSize,
        *,
        interval: int,
        graphs: bool,
        listener: Listener | None = None,
    ) -> None:
        self.model = model
        self.responses = responses
        self.rows = rows
        self.cache = TreeCache(size, model.device)
        self.interval = interval
        self.graphs = graphs
        self.fused = FusedStep(model) if uses_triton(model.device) and fits_fused_step(model) else None
        self.listener = listener
        self.steps = 0
        self.seated_at: dict[int, int] = {}  # the step before which each row was taken
        idle = torch.full((size.branches,), responses.count, device=model.device)
        self.number = idle  # (R,): the response that is written
        self.first_position = torch.zeros_like(idle)  # (R,): the rotary position of its first token
        self.token = torch.zeros_like(idle)  # (R,): its last token
        self.going_on = torch.zeros_like(idle, dtype=torch.bool)
        if graphs:  # their tensors keep their shapes
            self.cache.prefix_count = size.prefixes
        self._renew()

    def decode(self) -> None:
        """Writes all responses. UserError if a branch's logits are not finite."""
        while self._fill():
            self._reserve()
            for _ in range(self.interval):
                self._step()

    def _fill(self) -> bool:
        """Takes ended branches out and the next prompts in; returns whether any branch goes on."""
        self._release()
        while seated := self.rows.seat(self.cache.branches.free_branches()):
            self._prefill(seated)
            self._release()
        taken = self.rows.taken
        if taken and not self.rows.waiting and len(taken) <= KEEP * len(self.number):
            self._close_up()
        return bool(taken)

    def _release(self) -> None:
        if not self.rows.taken:
            return
        going_on, broken = torch.stack([self.going_on, self.responses.broken[self.number]]).tolist()
        for row in list(self.rows.taken):
            if broken[row]:
                raise self.responses.not_finite()
            if not going_on[row]:
                self.rows.release(row)
                self._leave(row)

    def _leave(self, row: int) -> None:
        self.cache.branches.release(row, self.steps - self.seated_at.pop(row))

    def _reserve(self) -> None:
        """Makes room for the next steps. Where there is none, the branches that came last wait again: their
        tokens will be the same."""
        branches, after = self.cache.branches, self.steps + self.interval
        while not branches.reserve({row: after - since for row, since in self.seated_at.items()}):
            last = max(self.seated_at, key=lambda row: (self.seated_at[row], row))
            self.rows.put_back(last)
            self.going_on[last] = False
            self._leave(last)
        if branches.version != self.version:
            self._renew()

    def _prefill(self, seated: list[Seated]) -> None:
        """Prefills every prompt's prefix and instructions in passes of some prompts, vision tower included,
        and chooses the first token of its branches."""
        queries = [
            replace(one.prompt.query, groups=[replace(group, rollouts=[]) for group, _ in one.prompt.groups])
            for one in seated
        ]
        start = 0
        for pack in pack_queries(self.model, queries, budget=PREFILL, join=False):
            self._begin(pack, seated[start : start + len(pack.queries)])
            start += len(pack.queries)

    def _begin(self, pack: Pack, seated: list[Seated]) -> None:
        device, cache = self.model.device, self.cache
        cache.begin_prefill([one.prefix for one in seated])
        hidden = pack.hidden(self.model, tree_cache=cache)
        cache.end_prefill()
        logits = self.model.lm_head(hidden[pack.fork_row, pack.fork_column])
        position = pack.positions.amax(0)[pack.fork_row, pack.fork_column] + 1
        self.seated_at |= {row: self.steps for one in seated for row in one.rows}
        rows, number, group, prefix, column = _places_of(seated).to(device)
        cache.place(rows, prefix, column, pack.fork_sees[group])
        self.number[rows], self.first_position[rows], self.going_on[rows] = number, position[group], True
        self.responses.begin(number)
        self._choose(rows, logits[group])

    def _choose(self, rows: torch.Tensor | slice, logits: torch.Tensor) -> None:
        """Chooses the next token of the responses in `rows` by `logits` (n, V)."""
        number, asked = self.number[rows], self.going_on[rows]
        token, going_on = self.responses.extend(number, asked, logits)
        if self.listener is not None:
            self.listener(number[asked], token[asked])
        self.token[rows], self.going_on[rows] = token, going_on

    def _step(self) -> None:
        """One decoding pass of the last tokens, and the choice of the next."""
        index = (self.responses.length[self.number] - 1).clamp(0, self.responses.limit - 1)
        self.cache.branches.begin_step(index)
        self.position.copy_(self.first_position + index)
        self.steps += 1
        self._choose(slice(None), self._replay() if self.graphs else self._logits())

    def _logits(self) -> torch.Tensor:
        """Returns the next-token logits (R, V) after `self.token`."""
        if self.fused:
            return self.fused.logits(self.token, self.position, self.cache)
        positions = self.position.expand(3, -1)[..., None]
        hidden = hidden_states(self.model, self.token[:, None], positions, self.unused, tree_cache=self.cache)
        return self.model.lm_head(hidden[:, -1])

    def _replay(self) -> torch.Tensor:
        return self.replay(self._logits)

    def _close_up(self) -> None:
        """Leaves out the rows that nobody has."""
        rows, prefixes = self.rows.close_up()
        self.cache.select(rows, prefixes)
        self.seated_at = {new: self.seated_at[row] for new, row in enumerate(rows)}
        kept = torch.tensor(rows, device=self.model.device)
        self.number, self.first_position = self.number[kept], self.first_position[kept]
        self.token, self.going_on = self.token[kept], self.going_on[kept]
        self._renew()

    def _renew(self) -> None:
        """Makes what a step reads besides the cache, for the rows that there are."""
        self.position = torch.zeros_like(self.first_position)
        self.unused = torch.zeros(
            len(self.position), 1, 1, 1, dtype=self.model.dtype, device=self.position.device
        )
        self.replay = CUDAGraphStep()
        self.version = self.cache.branches.version


def _places_of(seated: list[Seated]) -> torch.Tensor:
    """Of every branch its row, response, group among all groups, its prefix's row and its column there:
    (5, n)."""
    found, first = [], 0
    for one in seated:
        groups = one.prompt.groups
        numbered = [(first + group, number) for group, (_, own) in enumerate(groups) for number in own]
        pairs = enumerate(zip(one.rows, numbered, strict=True))
        found += [(row, number, group, one.prefix, column) for column, (row, (group, number)) in pairs]
        first += len(groups)
    return torch.tensor(found).T
