"""The filter of rewrites: format, answer, and agreement with the grounded reasoning. In: pairs of candidate
and response. Out: one verdict per pair."""

import re

from ivgr.core.response import format_reward, read_think
from ivgr.judge.protocol import Agreement, Comparison, Judge, take_verdicts
from ivgr.rewards.accuracy import read_accuracy
from ivgr.tools.distill.collect import Candidate

KEPT = "kept"
GIVEN_UP = "mathematics given up"
REASONS = ("box", "format", "answer", GIVEN_UP, "consistency")
Pair = tuple[Candidate, str]

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_COORDINATES = re.compile(rf"</?box|[\[(]\s*{_NUMBER}(?:\s*,\s*{_NUMBER}){{3}}\s*[\])]")


def judge_rewrites(pairs: list[Pair], judge: Judge, consistency: float) -> list[str]:
    """KEPT, or the first of REASONS that speaks against it: coordinates are left; no well-formed
    response or nothing thought; not the gold answer, or one that took too long to compare; R_cons
    against the candidate's reasoning below `consistency`."""
    verdicts = [_read_form(response) for _, response in pairs]
    for lowest, check in ((1.0, _agree), (consistency, _compare)):
        left = [index for index, verdict in enumerate(verdicts) if verdict == KEPT]
        for index, (score, reason) in zip(left, check([pairs[i] for i in left], judge), strict=True):
            if score is None or score < lowest:
                verdicts[index] = reason
    return verdicts


def _read_form(response: str) -> str:
    if _COORDINATES.search(response):
        return "box"
    return KEPT if format_reward(response) and read_think(response).strip() else "format"


def _agree(pairs: list[Pair], judge: Judge) -> list[tuple[float | None, str]]:
    """A score each, and the reason if it is too low."""
    read = [read_accuracy(candidate.sample, response) for candidate, response in pairs]
    questions = [question for question in read if isinstance(question, Agreement)]
    verdicts = iter(take_verdicts(questions, judge.agree(questions)))
    return [
        (next(verdicts), GIVEN_UP if found.given_up else "answer")
        if isinstance(found, Agreement)
        else (found, "answer")
        for found in read
    ]


def _compare(pairs: list[Pair], judge: Judge) -> list[tuple[float | None, str]]:
    asked = [Comparison(c.sample, c.think, read_think(text), c.frame) for c, text in pairs]
    return [(score, "consistency") for score in take_verdicts(asked, judge.compare(asked))]
