"""Queries scored in one call."""

from hypothesis import strategies as st

from ivgr.core.query import Query
from ivgr.rewards.archive import Archive
from ivgr.rewards.rewards import Rewards, TermConfig
from ivgr.rewards.scorer import Scorer
from ivgr.toy import RuleJudge

NAMES = ("format", "accuracy", "single_accuracy", "box", "validity", "consistency")
weights = st.fixed_dictionaries({name: st.floats(0, 10) for name in NAMES})


def score(*queries: Query, judge=None, archive: Archive | None = None, **weights: float) -> None:
    terms = {name: TermConfig(weight=weight) for name, weight in weights.items()}
    rewards = Rewards(**terms, archive=Archive() if archive is None else archive)
    Scorer(rewards, judge or RuleJudge()).score(list(queries))
