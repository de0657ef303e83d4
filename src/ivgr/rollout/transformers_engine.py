"""The protocol of rollout engines, and the engine on plain transformers.

One pass prefills a query's prefix and both its instructions. Then all branches of all queries decode
together from that KV cache; a branch that has ended leaves the batch.
"""

import logging
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ivgr.core.errors import UserError
from ivgr.core.memory import unless_out_of_memory
from ivgr.core.query import Group, Query, Rollout, global_indices
from ivgr.core.settings import PositiveInt, checked
from ivgr.models.forward import banned_ids, stop_ids
from ivgr.rollout.branches import Branches, Listener
from ivgr.rollout.sampling import Sampling, SamplingConfig, draw_noise

LOGGER = logging.getLogger("ivgr")

# A response to be decoded: its query, and the group of that query to which it belongs.
Branch = tuple[Query, Group]


class RolloutEngine(Protocol):
    """An engine that fills every group of every query with responses of the policy."""

    @property
    def sampling(self) -> SamplingConfig:
        """The settings that `roll_out` samples with."""
        ...

    def roll_out(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: list[Query], seed: int
    ) -> None:
        """Appends group_size sampled rollouts to each group. The draw for a query depends on `seed` and its
        sample_index, not on the other queries."""

    def answer(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: list[Query]
    ) -> None:
        """Appends one greedy rollout to each group."""


@checked("model.engine.")
class TransformersEngine:
    """Batched decoding with the HF model itself, on the very weights that are updated (rounded to fsdp2's
    param_dtype, in which the update computes too).

    When memory runs out, the engine halves its batch for the rest of the run: whole queries first, then the
    branches of a single query, down to one. The tokens do not change.

    Args:
        sampling: Group size, temperature, nucleus, response length.
        batch_queries: Queries decoded together, where memory holds them.
        cuda_graphs: On a GPU, launches each decoding step as one CUDA graph.
    """

    def __init__(
        self,
        sampling: SamplingConfig = SamplingConfig(),
        batch_queries: PositiveInt = 64,
        cuda_graphs: bool = False,
    ) -> None:
        self.sampling = sampling
        self.batch_queries = batch_queries
        self.cuda_graphs = cuda_graphs
        # Branches to decode together, by the number of copies per group, once memory has run out for more.
        self.most: dict[int, int] = {}

    def roll_out(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: list[Query], seed: int
    ) -> None:
        config = self.sampling
        sampling = Sampling(config.temperature, config.top_p, tuple(banned_ids(model)))
        self.respond(model, tokenizer, queries, sampling, config.group_size, seed)

    def answer(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: list[Query]
    ) -> None:
        self.respond(model, tokenizer, queries, Sampling(0.0, 1.0, tuple(banned_ids(model))), 1, 0)

    def stops(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Returns the tokens that end a response."""
        return stop_ids(model, tokenizer)

    @torch.no_grad()
    def respond(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        queries: list[Query],
        sampling: Sampling,
        copies: int,
        seed: int,
        listener: Listener | None = None,
    ) -> None:
        """Appends `copies` rollouts to each group. After an out-of-memory, the listener hears the repeated
        responses again, from their beginning. UserError if memory does not hold one response."""
        places, stops = global_indices(queries), self.stops(model, tokenizer)
        for start in range(0, len(queries), self.batch_queries):
            batch = queries[start : start + self.batch_queries]
            branches = [(query, group) for query in batch for group in query.groups for _ in range(copies)]
            noise = None
            if sampling.temperature:
                counts = [copies * len(query.groups) for query in batch]
                noise = draw_noise(places[start:][: len(batch)], counts, self.sampling.max_new_tokens, seed)
            responses: list[tuple] = []
            while waiting := branches[len(responses) :]:
                part = _first_queries(waiting, self.most.get(copies, len(waiting)))
                own = None if noise is None else noise[len(responses) :][: len(part)]
                decode = partial(self._decode, model, part, sampling, own, stops, listener)
                found = unless_out_of_memory(decode)
                if found is None:
                    self.most[copies] = self._halve(part)
                responses += found or []
            for (_, group), (tokens, logp, sampling_logp, ended) in zip(branches, responses, strict=True):
                text = group.opened + str(tokenizer.decode(tokens, skip_special_tokens=True))
                group.rollouts.append(Rollout(tokens, logp, sampling_logp, text, truncated=not ended))

    def _decode(
        self,
        model: PreTrainedModel,
        branches: list[Branch],
        sampling: Sampling,
        noise: torch.Tensor | None,
        stops: list[int],
        listener: Listener | None,
    ) -> list[tuple]:
        """Decodes all `branches` together; returns what `Branches.decode` returns."""
        decoding = Branches(model, self.sampling.max_new_tokens, self.cuda_graphs)
        decoding.prefill(*_prompts_of(branches))
        return decoding.decode(sampling, noise, stops, listener)

    def _halve(self, branches: list[Branch]) -> int:
        """Returns how many branches to decode together from now on, after memory ran out for `branches`."""
        if len(branches) == 1:
            query, group = branches[0]
            raise UserError(
                "memory ran out as one response was decoded, to a prompt of "
                f"{len(query.prefix) + len(group.instruction)} tokens: lower max_new_tokens, which is "
                f"{self.sampling.max_new_tokens}, or max_prompt_tokens; batch_queries makes no difference"
            )
        half = len(branches) // 2
        LOGGER.warning(
            "rollout: memory ran out for %d responses together; %d from now on", len(branches), half
        )
        return half


def _first_queries(branches: list[Branch], most: int) -> list[Branch]:
    """Returns the first of `branches`, at most `most`: those of whole queries, or some branches of the first
    query if it does not fit as a whole."""
    if len(branches) <= most:
        return branches
    whole = [end for end in range(1, most + 1) if branches[end][0] is not branches[end - 1][0]]
    return branches[: max(whole, default=most)]


def _prompts_of(branches: list[Branch]) -> tuple[list[Query], list[int]]:
    """Returns the queries of `branches` without rollouts, each with the groups that have branches here, and
    the number of branches per group."""
    queries, copies = [], []
    for _, own in groupby(branches, key=lambda branch: id(branch[0])):
        own = list(own)
        parts = [list(part) for _, part in groupby(own, key=lambda branch: id(branch[1]))]
        queries.append(replace(own[0][0], groups=[replace(part[0][1], rollouts=[]) for part in parts]))
        copies += map(len, parts)
    return queries, copies
