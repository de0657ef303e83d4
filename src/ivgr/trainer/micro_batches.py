"""Micro-batches: queries packed under a token budget, one pass each, halved where memory runs out. A tree
beyond the budget is split: its parts repeat the prefix, and their gradients add up to the same."""

from collections.abc import Callable
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from ivgr.core.errors import UserError
from ivgr.core.memory import is_out_of_memory
from ivgr.core.query import Query
from ivgr.packing.prefix_tree import Layout, Pack, pack_queries, split_tree, tree_length
from ivgr.trainer.dummy_packs import PadWithDummyPacks

T = TypeVar("T")


class MicroBatcher:
    """Packs the queries of a mini-batch and passes over its packs.

    When memory runs out in a pass, it changes three things: it lowers token_budget for the rest of the run,
    splits the list of packs in place, and drops the policy's gradients and computes them again, because a
    backward pass that broke off has left some.

    Args:
        policy: The model that the packs are for.
        token_budget: Padded tokens per pack at first.
        pad_with_dummy_packs: Fills up packs where weights are split over ranks. There a pass is a
            collective, which a rank can neither repeat nor split alone, so that nothing is changed.
    """

    def __init__(
        self, policy: PreTrainedModel, token_budget: int, pad_with_dummy_packs: PadWithDummyPacks | None
    ) -> None:
        self.policy = policy
        self.token_budget = token_budget
        self.pad_with_dummy_packs = pad_with_dummy_packs

    def pack(self, queries: list[Query], layout: Layout) -> list[Pack]:
        """Packs the queries of one mini-batch; if weights are sharded, all ranks must call it."""
        packs = _pack_within(self.policy, queries, self.token_budget, layout)
        return packs if self.pad_with_dummy_packs is None else self.pad_with_dummy_packs(packs)

    def run(self, packs: list[Pack], work: Callable[[Pack], T]) -> list[T]:
        """Returns the results of `work` for every pack, splitting packs when memory runs out. UserError if
        memory does not hold one response, or runs out while weights are sharded."""
        while True:
            done: list[T] = []
            failed = _work_until_out_of_memory(packs, work, done)
            if failed is None:
                return done
            del done
            if self.pad_with_dummy_packs is not None:
                raise _out_of_memory_together(failed)
            self._split(packs, failed)

    def _split(self, packs: list[Pack], failed: Pack) -> None:
        """Drops the gradients, lowers the budget and splits `packs`, in place."""
        self.policy.zero_grad()
        self.token_budget = _halve_budget(self.token_budget, failed)
        packs[:] = [part for pack in packs for part in _split_pack(self.policy, pack, self.token_budget)]
        torch.cuda.empty_cache()


def _pack_within(
    model: PreTrainedModel, queries: list[Query], budget: int, layout: Layout = "tree"
) -> list[Pack]:
    """Packs `queries`, of which those are split whose trees are longer than `budget` tokens."""
    parts = [part for query in queries for part in split_tree(query, budget)]
    return pack_queries(model, parts, budget, layout)


def _work_until_out_of_memory(packs: list[Pack], work: Callable[[Pack], T], done: list[T]) -> Pack | None:
    """Appends the results of `work` to `done`; returns the pack in which memory ran out, or None."""
    for pack in packs:
        try:
            done.append(work(pack))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return pack
    return None


def _halve_budget(budget: int, failed: Pack) -> int:
    """Returns a token budget that splits `failed`, for which memory ran out, in at least two: half its
    tokens, or of a single query its prompt and half its responses. UserError if it is a single response,
    which cannot be split."""
    tokens = failed.ids.numel()
    if len(failed.queries) > 1:
        return min(budget, tokens) // 2
    if len(failed.rollouts) <= 1:
        raise UserError(
            f"memory ran out in a pass over one response of {tokens} tokens with its prompt, which cannot be "
            "split: set model.trainable.gradient_checkpointing true, or lower "
            "model.engine.sampling.max_new_tokens or model.encoding.max_prompt_tokens"
        )
    half = tokens - sum(len(rollout.tokens) for rollout in failed.rollouts) // 2
    longest = max(map(tree_length, split_tree(failed.queries[0], 0)))
    return min(max(half, longest), tokens - 1)


def _out_of_memory_together(failed: Pack) -> UserError:
    """Returns the error of a pass that is a collective, so that no rank can split its packs alone."""
    return UserError(
        f"memory ran out in a pass over {failed.ids.numel()} tokens, which with trainer.strategy fsdp2 one "
        "rank cannot split alone: lower model.update.token_budget below that, or set "
        "model.trainable.gradient_checkpointing true"
    )


def _split_pack(model: PreTrainedModel, pack: Pack, budget: int) -> list[Pack]:
    """Splits `pack` into packs of at most `budget` padded tokens, keeping the log-probs that are known."""
    if pack.ids.numel() <= budget:
        return [pack]
    parts = _pack_within(model, pack.queries, budget)
    counts = [len(part.targets) for part in parts]
    for name in ("ref_logp", "old_logp"):
        if (known := getattr(pack, name)) is not None:
            for part, own in zip(parts, known.split(counts), strict=True):
                setattr(part, name, own)
    return parts
