"""Rollouts: the engine protocol and the engine on plain transformers.

The prefix of a query is prefilled once, each stream's instruction once on top of it, then
all branches of all queries decode together; branches that have ended leave the batch.
"""

from typing import Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ivgr.errors import UserError
from ivgr.policy.forward import additive_mask, banned_ids, hidden_states, prompt_positions, stop_ids
from ivgr.query import Query, Rollout
from ivgr.rollout.cache import decoding_cache
from ivgr.rollout.sampling import Sampling

# Ended branches leave the batch together, once no more than this share is still decoding:
# leaving copies the cache.
KEEP = 0.75


class RolloutEngine(Protocol):
    """Fills every group of every query with responses of the policy."""

    temperature: float

    def roll_out(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: list[Query], seed: int
    ) -> None:
        """Appends the configured number of sampled rollouts to each group."""

    def answer(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: list[Query]
    ) -> None:
        """Appends one greedy rollout to each group."""


class TransformersEngine:
    """Batched decoding with the HF model itself, so that the policy that samples is
    bit for bit the one that is updated.

    Args:
        group_size: Rollouts per query and stream (N).
        temperature: Sampling temperature; all log-probs of the run are taken at it.
        top_p: Nucleus kept when sampling.
        max_new_tokens: Longest response; longer ones are cut and counted.
        batch_queries: Queries decoded together.
    """

    def __init__(
        self,
        group_size: int = 5,
        temperature: float = 1.0,
        top_p: float = 0.99,
        max_new_tokens: int = 1024,
        batch_queries: int = 64,
    ) -> None:
        if group_size < 2:
            raise UserError(
                f"model.engine.group_size is {group_size}: an advantage needs at least 2 rollouts"
            )
        if temperature <= 0 or not 0 < top_p <= 1:
            raise UserError("model.engine: temperature must be > 0 and top_p in (0, 1]")
        self.group_size, self.temperature, self.top_p = group_size, temperature, top_p
        self.max_new_tokens, self.batch_queries = max_new_tokens, batch_queries

    def roll_out(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: list[Query], seed: int
    ) -> None:
        sampling = Sampling(self.temperature, self.top_p, tuple(banned_ids(model)))
        self._run(model, tokenizer, queries, sampling, self.group_size, seed)

    def answer(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: list[Query]
    ) -> None:
        self._run(model, tokenizer, queries, Sampling(0.0, 1.0, tuple(banned_ids(model))), 1, 0)

    @torch.no_grad()
    def _run(self, model, tokenizer, queries, sampling: Sampling, copies: int, seed: int) -> None:
        generator = torch.Generator(model.device).manual_seed(seed)
        for start in range(0, len(queries), self.batch_queries):
            batch = queries[start : start + self.batch_queries]
            branches = _Branches(model, batch)
            branches.prefill()
            branches.fork(copies)
            responses = branches.decode(sampling, generator, self.max_new_tokens)
            groups = [group for query in batch for group in query.groups for _ in range(copies)]
            for group, (tokens, logp, sampling_logp, ended) in zip(groups, responses, strict=True):
                text = tokenizer.decode(tokens, skip_special_tokens=True)
                group.rollouts.append(Rollout(tokens, logp, sampling_logp, text, truncated=not ended))


class _Branches:
    """The decoding state of a batch: KV cache (rows, keys), which keys each row sees, the
    next rotary position and the next-token logits of each row."""

    def __init__(self, model: PreTrainedModel, queries: list[Query]) -> None:
        self.model, self.queries = model, queries
        self.cache = decoding_cache(model.config)
        self.seen = torch.zeros(len(queries), 0, dtype=torch.bool, device=model.device)
        self.next_position = torch.zeros(len(queries), dtype=torch.long, device=model.device)
        self.logits = torch.empty(0)

    def prefill(self) -> None:
        """Prefix of every query, vision tower included, once."""
        pixels = [query.pixel_values for query in self.queries if query.pixel_values is not None]
        grids = [query.image_grid_thw for query in self.queries if query.image_grid_thw is not None]
        positions = [prompt_positions(self.model, q.prefix, q.image_grid_thw) for q in self.queries]
        self._extend(
            [query.prefix for query in self.queries],
            positions,
            pixel_values=torch.cat(pixels).to(self.model.device) if pixels else None,
            image_grid_thw=torch.cat(grids).to(self.model.device) if grids else None,
        )

    def fork(self, copies: int) -> None:
        """One row a group, its instruction read, then `copies` rows a group."""
        self._select([row for row, query in enumerate(self.queries) for _ in query.groups])
        instructions = [group.instruction for query in self.queries for group in query.groups]
        steps = [torch.arange(len(ids)).expand(3, -1) for ids in instructions]
        positions = [base + step for base, step in zip(self.next_position.tolist(), steps, strict=True)]
        self._extend(instructions, positions)
        self._select([row for row in range(len(instructions)) for _ in range(copies)])

    def decode(self, sampling: Sampling, generator: torch.Generator, limit: int) -> list[tuple]:
        """(tokens, logp, sampling_logp, ended) of each row, in row order, on the CPU."""
        device = self.model.device
        rows = torch.arange(len(self.logits), device=device)
        alive = torch.ones(len(rows), dtype=torch.bool, device=device)
        stops = torch.tensor(stop_ids(self.model), device=device)
        record = torch.zeros(3, len(rows), limit, dtype=torch.float64, device=device)
        length = torch.zeros(len(rows), dtype=torch.long, device=device)
        ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
        for step in range(limit):
            chosen = sampling.choose(self.logits, generator)
            record[:, rows[alive], step] = torch.stack([part.double() for part in chosen])[:, alive]
            length[rows[alive]] += 1
            stopped = torch.isin(chosen[0], stops) & alive
            ended[rows[stopped]] = True
            alive = alive & ~stopped
            remaining = int(alive.sum())
            if remaining == 0 or step + 1 == limit:
                break
            token = chosen[0]
            if remaining <= KEEP * len(rows):
                rows, token = rows[alive], token[alive]
                self._select(alive.nonzero()[:, 0])
                alive = torch.ones_like(rows, dtype=torch.bool)
            self._step(token)
        tokens, logp, sampling_logp = record.cpu()
        return [
            (tokens[i, :n].long(), logp[i, :n].float(), sampling_logp[i, :n].float(), bool(ended[i]))
            for i, n in enumerate(length.tolist())
        ]

    def _extend(self, parts: list[torch.Tensor], positions: list[torch.Tensor], **vision) -> None:
        """Reads `parts[i]` after row i; ragged parts are padded on the right, and the padded
        keys stay unseen."""
        device, width = self.model.device, max(map(len, parts))
        ids = torch.zeros(len(parts), width, dtype=torch.long)
        places = torch.zeros(3, len(parts), width, dtype=torch.long)
        real = torch.zeros(len(parts), width, dtype=torch.bool)
        for row, part in enumerate(parts):
            ids[row, : len(part)], real[row, : len(part)] = part, True
            places[:, row, : len(part)] = positions[row]
        ids, places, real = ids.to(device), places.to(device), real.to(device)
        causal = torch.ones(width, width, dtype=torch.bool, device=device).tril_() & real[:, None, :]
        past = self.seen[:, None, :].expand(-1, width, -1)
        mask = additive_mask(torch.cat([past, causal], -1), self.model.dtype)
        hidden = hidden_states(self.model, ids, places, mask, cache=self.cache, **vision)
        last = real.sum(-1) - 1
        self.seen = torch.cat([self.seen, real], -1)
        self.next_position = torch.stack([part.max() + 1 for part in positions]).to(device)
        self.logits = self.model.lm_head(hidden[torch.arange(len(parts), device=device), last])

    def _step(self, token: torch.Tensor) -> None:
        new = torch.ones(len(token), 1, dtype=torch.bool, device=token.device)
        self.seen = torch.cat([self.seen, new], -1)
        mask = additive_mask(self.seen[:, None, :], self.model.dtype)
        positions = self.next_position.expand(3, -1)[..., None]
        hidden = hidden_states(self.model, token[:, None], positions, mask, cache=self.cache)
        self.next_position = self.next_position + 1
        self.logits = self.model.lm_head(hidden[:, -1])

    def _select(self, rows: list[int] | torch.Tensor) -> None:
        rows = torch.as_tensor(rows, device=self.model.device)
        self.cache.batch_select_indices(rows)
        self.seen, self.next_position = self.seen[rows], self.next_position[rows]
        self.logits = self.logits[rows]
