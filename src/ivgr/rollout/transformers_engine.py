"""The protocol of rollout engines, and the engine on plain transformers.

One pass prefills a query's prefix and both its instructions. Branches of many queries decode together from
that KV cache; a branch that has ended makes room for the next query's.
"""

import logging
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ivgr.core.errors import UserError
from ivgr.core.memory import unless_out_of_memory
from ivgr.core.query import Query, Rollout, global_indices
from ivgr.core.settings import PositiveInt, checked
from ivgr.distributed.tensor_parallel import SETTING, tp_group_of
from ivgr.models.forward import banned_ids, stop_ids
from ivgr.rollout.batch_rows import BatchRows, Prompt
from ivgr.rollout.branches import Branches, Listener
from ivgr.rollout.prefix_kv_cache import CacheSize
from ivgr.rollout.responses import Responses
from ivgr.rollout.room import cache_size
from ivgr.rollout.sampling import Sampling, SamplingConfig, draw_noise

LOGGER = logging.getLogger("ivgr")

# Steps on a GPU after which ended branches are looked for.
INTERVAL = 16


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
    """Continuous batching with the HF model itself, on the very weights that are updated (rounded to fsdp2's
    param_dtype, in which the update computes too).

    As many branches decode together as the free memory holds; one that has ended makes room for the next
    query's. Should memory run out all the same, the engine halves its batch for the rest of the run, down to
    one branch, and goes on with the responses that were done. The tokens do not change.

    Args:
        sampling: Group size, temperature, nucleus, response length.
        batch_queries: The most queries whose branches decode together, those of all GPUs that share a copy of
            the weights.
        cuda_graphs: On a GPU, launches each decoding step as one CUDA graph.
    """

    refill = True  # whether a row that is left is taken by the next query at once

    def __init__(
        self,
        sampling: SamplingConfig = SamplingConfig(),
        batch_queries: PositiveInt = 64,
        cuda_graphs: bool = True,
    ) -> None:
        self.sampling = sampling
        self.batch_queries = batch_queries
        self.cuda_graphs = cuda_graphs
        # The most to decode together, by the number of copies per group, once memory has run out for more.
        self.most: dict[int, CacheSize] = {}
        self.steps = 0  # decoding passes, of all calls

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

    def limits(self, responses: int) -> list[int]:
        """Returns the most tokens of each response."""
        return [self.sampling.max_new_tokens] * responses

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
        responses again, from their beginning. UserError if memory does not hold one response, or if it runs
        out on a rank that shares the model."""
        groups = [group for query in queries for group in query.groups for _ in range(copies)]
        if not groups:
            return
        noise = None
        if sampling.temperature:
            counts = [copies * len(query.groups) for query in queries]
            noise = draw_noise(global_indices(queries), counts, self.sampling.max_new_tokens, seed)
        limits, stops = self.limits(len(groups)), self.stops(model, tokenizer)
        tp_group = tp_group_of(model)
        responses = Responses(limits, sampling, stops, noise, model.device, tp_group)
        while waiting := responses.unfinished():
            prompts = _prompts_of(queries, copies, set(waiting))
            size = cache_size(model, prompts, responses.limit, self.batch_queries, self.most.get(copies))
            if not unless_out_of_memory(partial(self._decode, model, responses, prompts, size, listener)):
                self.most[copies] = self._halve(prompts, size, alone=tp_group is None)
        for group, (tokens, logp, sampling_logp, ended) in zip(groups, responses.read(), strict=True):
            text = group.opened + str(tokenizer.decode(tokens, skip_special_tokens=True))
            group.rollouts.append(Rollout(tokens, logp, sampling_logp, text, truncated=not ended))

    def _decode(
        self,
        model: PreTrainedModel,
        responses: Responses,
        prompts: list[Prompt],
        size: CacheSize,
        listener: Listener | None,
    ) -> bool:
        """Writes the responses to all `prompts`."""
        on_gpu = model.device.type == "cuda"
        branches = Branches(
            model,
            responses,
            BatchRows(prompts, size.branches, size.prefixes, self.refill),
            size,
            interval=1 if listener or not on_gpu else INTERVAL,
            graphs=on_gpu and self.cuda_graphs,
            listener=listener,
        )
        branches.decode()
        self.steps += branches.steps
        return True

    def _halve(self, prompts: list[Prompt], size: CacheSize, alone: bool) -> CacheSize:
        """Returns the most to decode together from now on, after memory ran out for `size`. UserError if that
        was one response, or if this rank does not decode `alone`."""
        if size.branches == 1:
            (group, _), query = prompts[0].groups[0], prompts[0].query
            raise UserError(
                "memory ran out as one response was decoded, to a prompt of "
                f"{len(query.prefix) + len(group.instruction)} tokens: lower max_new_tokens, which is "
                f"{self.sampling.max_new_tokens}, or max_prompt_tokens; batch_queries makes no difference"
            )
        if not alone:
            raise UserError(
                f"memory ran out for {size.branches} responses together, and with {SETTING} one rank cannot "
                f"take fewer alone: lower model.engine.batch_queries, which is {self.batch_queries}, to "
                f"{max(1, min(self.batch_queries, size.branches // size.siblings) // 2)}"
            )
        half = replace(size, branches=size.branches // 2, tokens=size.tokens // 2)
        LOGGER.warning(
            "rollout: memory ran out for %d responses together; %d from now on", size.branches, half.branches
        )
        return half


def _prompts_of(queries: list[Query], copies: int, waiting: set[int]) -> list[Prompt]:
    """The prompts of the responses that wait, which are numbered in tree order."""
    prompts, number = [], count()
    for query in queries:
        numbered = [(group, [next(number) for _ in range(copies)]) for group in query.groups]
        left = [(group, [one for one in own if one in waiting]) for group, own in numbered]
        if groups := [(group, own) for group, own in left if own]:
            prompts.append(Prompt(query, groups))
    return prompts
