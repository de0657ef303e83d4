"""Queries scored in one call."""

from hypothesis import strategies as st

from ivgr.core.query import Query
from ivgr.rewards.archive import Archive
from ivgr.rewards.rewards import Rewards, Term, ask_once, enter_verdicts
from ivgr.toy import RuleJudge

NAMES = ("format", "accuracy", "single_accuracy", "box", "validity", "consistency")


weights = st.fixed_dictionaries({name: st.floats(0, 10) for name in NAMES})


def score(*queries: Query, judge=None, archive: Archive | None = None, **weights: float) -> None:
    rewards = Rewards(**{name: Term(weight) for name, weight in weights.items()})
    judge, archive = judge or RuleJudge(), Archive() if archive is None else archive
    doubtful = rewards.apply_rules(list(queries))
    enter_verdicts(doubtful, ask_once(judge.agree, doubtful), "accuracy")
    archive.admit(list(queries))
    pairs = rewards.pair_reasoning(list(queries), archive)
    enter_verdicts(pairs, ask_once(judge.compare, pairs), "consistency")
    rewards.add_up(list(queries))
