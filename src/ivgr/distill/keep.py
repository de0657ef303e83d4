"""Which rewrites are fit to be imitated: the format, the answer, the agreement with the
grounded reasoning. In: pairs of candidate and response. Out: a verdict each."""

import re

from ivgr.distill.collect import Candidate
from ivgr.judge.protocol import Agreement, Comparison, Judge
from ivgr.rewards.accuracy import read_accuracy
from ivgr.rewards.format import format_reward, read_think

KEPT = "kept"
REASONS = ("box", "format", "answer", "consistency")
Pair = tuple[Candidate, str]

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_COORDINATES = re.compile(rf"</?box|[\[(]\s*{_NUMBER}(?:\s*,\s*{_NUMBER}){{3}}\s*[\])]")


def judge_rewrites(pairs: list[Pair], judge: Judge, consistency: float) -> list[str]:
    """KEPT, or the first of REASONS that speaks against it: coordinates are left; no well-formed
    response or nothing thought; not the gold answer; R_cons against the candidate's
    reasoning below `consistency`."""
    verdicts = [_read_form(response) for _, response in pairs]
    for reason, check in (("answer", _agree), ("consistency", _compare)):
        left = [index for index, verdict in enumerate(verdicts) if verdict == KEPT]
        lowest = consistency if reason == "consistency" else 1.0
        for index, score in zip(left, check([pairs[i] for i in left], judge), strict=True):
            if score is None or score < lowest:
                verdicts[index] = reason
    return verdicts


def _read_form(response: str) -> str:
    if _COORDINATES.search(response):
        return "box"
    return KEPT if format_reward(response) and read_think(response).strip() else "format"


def _agree(pairs: list[Pair], judge: Judge) -> list[float | None]:
    read = [read_accuracy(candidate.sample, response) for candidate, response in pairs]
    verdicts = iter(judge.agree([question for question in read if isinstance(question, Agreement)]))
    return [next(verdicts) if isinstance(found, Agreement) else found for found in read]


def _compare(pairs: list[Pair], judge: Judge) -> list[float | None]:
    return judge.compare([Comparison(c.sample, c.think, read_think(text), c.frame) for c, text in pairs])
