"""Zero-std groups: finding them, rolling them out again, leaving them out.

A group whose rewards are all equal has zero advantages and teaches nothing. In: scored
queries. Out: the same queries with fresh rollouts in such groups (resampling groups of zero
variance is DAPO's, arXiv 2503.14476).
"""

from collections.abc import Callable
from dataclasses import replace

from ivgr.core.query import Group, Query
from ivgr.core.seeding import derive_seed
from ivgr.distributed.collectives import gather, gather_lists


def has_zero_std(group: Group) -> bool:
    """Whether all known rewards of the group are equal (None is unknown)."""
    return len({rollout.reward for rollout in group.rollouts if rollout.reward is not None}) == 1


def zero_std_groups(queries: list[Query]) -> list[Group]:
    return [group for query in queries for group in query.groups if has_zero_std(group)]


def frac_zero_std(queries: list[Query]) -> float:
    """Returns the share of zero-std groups among the groups of all ranks, in [0, 1]."""
    flat = gather_lists([has_zero_std(group) for query in queries for group in query.groups])
    return sum(flat) / len(flat)


def resample_zero_std(
    queries: list[Query],
    rounds: int,
    seed: int,
    roll_out: Callable[[list[Query], int], None],
    score: Callable[[list[Query]], None],
    sum_ranks: Callable[[float], float],
) -> dict[str, float]:
    """Rolls zero-std groups out again, each time from a seed of its own, and scores them, up to `rounds`
    times or until no rank has one; the new rollouts replace the old ones. Returns, over all ranks, the
    share of zero-std groups before and after, and how many groups were rolled out again."""
    before, resampled = frac_zero_std(queries), 0
    for number in range(1, rounds + 1):
        # On all ranks or none: scoring gathers the archive's entries of all ranks.
        if not sum_ranks(len(zero_std_groups(queries))):
            break
        fresh = _clear(queries)
        roll_out(fresh, derive_seed(seed, "resample", number))
        score(fresh)
        resampled += _put_back(queries, fresh)
    return {
        "advantage/flat_share_before": before,
        "advantage/flat_share_after": frac_zero_std(queries),
        "rollout/resampled": float(sum(gather(resampled))),
    }


def _clear(queries: list[Query]) -> list[Query]:
    """Returns the zero-std groups of `queries`, without rollouts, as separate queries."""
    return _narrow(queries, lambda group: replace(group, rollouts=[]) if has_zero_std(group) else None)


def _put_back(queries: list[Query], fresh: list[Query]) -> int:
    """Gives each zero-std group of `queries` the rollouts of its new copy; returns how many there are."""
    pairs = zip(zero_std_groups(queries), (group for query in fresh for group in query.groups), strict=True)
    found = list(pairs)
    for group, again in found:
        group.rollouts = again.rollouts
    return len(found)


def without_zero_std(queries: list[Query]) -> list[Query]:
    """Returns `queries` without their zero-std groups, and without queries that have no other group."""
    return _narrow(queries, lambda group: None if has_zero_std(group) else group)


def _narrow(queries: list[Query], choose: Callable[[Group], Group | None]) -> list[Query]:
    narrowed = (
        replace(query, groups=[kept for group in query.groups if (kept := choose(group)) is not None])
        for query in queries
    )
    return [query for query in narrowed if query.groups]
