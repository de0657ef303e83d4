"""Runs packs one after another, and halves those that do not fit in memory."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from transformers import PreTrainedModel

from ivgr.core.errors import UserError
from ivgr.core.memory import is_out_of_memory
from ivgr.packing.prefix_tree import Pack, pack_queries

T = TypeVar("T")


class Budgeted(Protocol):
    """What passes over packs are made for: token_budget padded tokens a pack; level is set where
    weights are split over ranks."""

    policy: PreTrainedModel
    token_budget: int

    @property
    def pad_with_dummy_packs(self) -> Callable | None: ...


def run_within_memory(owner: Budgeted, packs: list[Pack], work: Callable[[Pack], T]) -> list[T]:
    """`work` of every pack. Where memory runs out, the owner's budget is halved for the rest of the
    run, the packs are split in place, and all gradients are made anew: a backward pass that
    broke off has left some. Not where weights are split over ranks: there a pass is a collective,
    which a rank can neither repeat nor make two of alone; UserError."""
    while True:
        done, failed = [], None
        for pack in packs:
            try:
                done.append(work(pack))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                failed = pack
                break
        if failed is None:
            return done
        del done
        if owner.pad_with_dummy_packs is not None:
            raise _out_of_memory_together(failed)
        owner.policy.zero_grad()
        owner.token_budget = _halve_budget(owner.token_budget, failed)
        packs[:] = [part for pack in packs for part in _split_pack(owner.policy, pack, owner.token_budget)]
        torch.cuda.empty_cache()


def _halve_budget(budget: int, failed: Pack) -> int:
    """The token budget under which `failed`, for which memory ran out, is split in two at least;
    UserError if it is one tree, which cannot be."""
    if len(failed.queries) == 1:
        raise UserError(
            f"memory ran out in a pass over one query of {failed.ids.numel()} tokens, which cannot be "
            "split: set model.trainable.gradient_checkpointing true, or lower "
            "model.engine.sampling.group_size, model.engine.sampling.max_new_tokens or "
            "model.encoding.max_prompt_tokens"
        )
    return min(budget, failed.ids.numel()) // 2


def _out_of_memory_together(failed: Pack) -> UserError:
    """Of a pass that all ranks were making together, so that none can split its packs alone."""
    return UserError(
        f"memory ran out in a pass over {failed.ids.numel()} tokens, which with trainer.strategy fsdp2 one "
        "rank cannot split alone: lower model.update.token_budget below that, or set "
        "model.trainable.gradient_checkpointing true"
    )


def _split_pack(model: PreTrainedModel, pack: Pack, budget: int) -> list[Pack]:
    """The same trees in packs of at most `budget` padded tokens, with what is known of their
    tokens already."""
    if pack.ids.numel() <= budget or len(pack.queries) == 1:
        return [pack]
    parts = pack_queries(model, pack.queries, budget)
    counts = [len(part.targets) for part in parts]
    for name in ("ref_logp", "old_logp"):
        if (known := getattr(pack, name)) is not None:
            for part, own in zip(parts, known.split(counts), strict=True):
                setattr(part, name, own)
    return parts
