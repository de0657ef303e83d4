"""Rolled-out queries become scored ones in one call, for whoever trains nothing: the order is an
iteration's (`ivgr.trainer.rl_step`), without an update beside the judge."""

from ivgr.core.query import Query
from ivgr.judge.protocol import Judge
from ivgr.rewards.archive import Archive
from ivgr.rewards.rewards import Rewards, ask_once, enter_verdicts


def score(queries: list[Query], rewards: Rewards, judge: Judge, archive: Archive) -> None:
    """Fills every rollout's terms, reference and reward; the archive takes in what qualifies."""
    doubtful = rewards.apply_rules(queries)
    enter_verdicts(doubtful, ask_once(judge.agree, doubtful), "accuracy")
    archive.admit(queries)
    pairs = rewards.pair_reasoning(queries, archive)
    enter_verdicts(pairs, ask_once(judge.compare, pairs), "consistency")
    rewards.add_up(queries)
