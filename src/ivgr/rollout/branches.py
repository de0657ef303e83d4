"""Branches that decode together: one prefill of their prompts, their KV cache, and the decoding steps."""

import sys
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from ivgr.core.query import Query
from ivgr.models.forward import hidden_states, not_finite
from ivgr.packing.prefix_tree import pack_queries
from ivgr.rollout.cuda_graph import CUDAGraphStep
from ivgr.rollout.prefix_kv_cache import TreeCache
from ivgr.rollout.sampling import Sampling

# Ended branches leave the batch together, once no more than this share is still decoding:
# leaving copies the cache.
KEEP = 0.75

# Hears every step as it is decoded: branches (A,) still being answered, numbered in tree order within
# what is decoded together, and the token (A,) chosen for each.
Listener = Callable[[torch.Tensor, torch.Tensor], None]


class Branches:
    """The decoding state of R branches: their KV cache, next rotary position (R,) and next-token logits
    (R, V)."""

    def __init__(self, model: PreTrainedModel, limit: int, graphs: bool) -> None:
        self.model = model
        self.limit = limit
        self.cache = TreeCache()
        self.graphs = graphs
        self.next_position = self.logits = torch.empty(0)

    def prefill(self, queries: list[Query], copies: list[int]) -> None:
        """Prefills every query's prefix and instructions in one pass, vision tower included, and starts
        `copies` branches of each group."""
        (pack,) = pack_queries(self.model, queries, budget=sys.maxsize, join=False)
        hidden = pack.hidden(self.model, tree_cache=self.cache)
        position = pack.positions.amax(0)[pack.fork_row, pack.fork_column] + 1
        logits = self.model.lm_head(hidden[pack.fork_row, pack.fork_column])
        group = torch.arange(len(copies)).repeat_interleave(torch.tensor(copies)).to(logits.device)
        self.next_position = position[group]
        self.logits = logits[group]
        self.cache.fork(pack.fork_row[group], pack.fork_sees[group], self.limit)

    def decode(
        self,
        sampling: Sampling,
        noise: torch.Tensor | None,
        stops: list[int],
        listener: Listener | None = None,
    ) -> list[tuple]:
        """Returns (tokens, logp, sampling_logp, ended) of each branch, in order, on the CPU. noise (R, limit)
        holds the random numbers to sample with, None for greedy decoding. UserError if a branch's logits are
        not finite."""
        device = self.model.device
        noise = None if noise is None else noise.to(device)
        rows = torch.arange(len(self.logits), device=device)
        alive = torch.ones(len(rows), dtype=torch.bool, device=device)
        ending = torch.tensor(stops, dtype=torch.long, device=device)
        record = torch.zeros(3, len(rows), self.limit, dtype=torch.float64, device=device)
        length = torch.zeros(len(rows), dtype=torch.long, device=device)
        ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
        for step in range(self.limit):
            chosen = sampling.choose(self.logits, None if noise is None else noise[rows, step])
            record[:, rows[alive], step] = torch.stack([part.double() for part in chosen])[:, alive]
            length[rows[alive]] += 1
            stopped = torch.isin(chosen[0], ending) & alive
            ended[rows[stopped]] = True
            # A logit that is not finite shows in the log-prob of whatever was chosen.
            spoilt = alive & ~chosen[1].isfinite()
            asked, alive = alive, alive & ~stopped
            remaining, broken = torch.stack([alive.sum(), spoilt.sum()]).tolist()
            if broken:
                raise not_finite(f"in {broken} of {len(rows)} responses, at token {step + 1}")
            if listener is not None:
                listener(rows[asked], chosen[0][asked])
            if remaining == 0 or step + 1 == self.limit:
                break
            token = chosen[0]
            if remaining <= KEEP * len(rows):
                rows, token = rows[alive], token[alive]
                self._select(alive.nonzero()[:, 0])
                alive = torch.ones_like(rows, dtype=torch.bool)
            self._step(token, step)
        tokens, logp, sampling_logp = record.cpu()
        return [
            (tokens[i, :n].long(), logp[i, :n].float(), sampling_logp[i, :n].float(), bool(ended[i]))
            for i, n in enumerate(length.tolist())
        ]

    def _step(self, token: torch.Tensor, step: int) -> None:
        if self.cache.begin_step(step):
            self._renew()
        self.token.copy_(token)
        self.logits = self.replay(self._logits_after) if self.replay else self._logits_after()
        self.next_position += 1

    def _logits_after(self) -> torch.Tensor:
        """Returns the next-token logits (R, V) after `self.token`."""
        positions = self.next_position.expand(3, -1)[..., None]
        hidden = hidden_states(self.model, self.token[:, None], positions, self.unused, tree_cache=self.cache)
        return self.model.lm_head(hidden[:, -1])

    def _select(self, rows: torch.Tensor) -> None:
        self.cache.select(rows)
        self.next_position = self.next_position[rows]
        self.logits = self.logits[rows]
        self._renew()

    def _renew(self) -> None:
        """Allocates the tensors that a step reads, for the branches that are left."""
        self.token = torch.zeros_like(self.next_position)
        self.unused = torch.zeros(len(self.token), 1, 1, 1, dtype=self.model.dtype, device=self.token.device)
        self.replay = CUDAGraphStep() if self.graphs else None
