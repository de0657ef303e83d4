"""A judge whose patience has an end. In: any judge. Out: the same, or a UserError."""

from collections.abc import Callable
from typing import Any

from ivgr.core.background import wait_for
from ivgr.judge.protocol import Agreement, Comparison, Judge, RulesAlone


def with_judge_timeout(judge: Judge, seconds: float | None) -> Judge:
    """`judge`, held to `seconds` unless they are null or it only goes by the rules."""
    return judge if seconds is None or isinstance(judge, RulesAlone) else TimeoutJudge(judge, seconds)


class TimeoutJudge:
    """Asks `judge` in a thread of its own and waits for at most `seconds`; a call that hangs is left
    behind when the program ends. What else the judge has, such as `report`, it has too."""

    def __init__(self, judge: Judge, seconds: float) -> None:
        self.judge = judge
        self.seconds = seconds

    def agree(self, questions: list[Agreement]) -> list[bool | None]:
        """See `Judge.agree`."""
        return self._call(self.judge.agree, questions)

    def compare(self, comparisons: list[Comparison]) -> list[float | None]:
        """See `Judge.compare`."""
        return self._call(self.judge.compare, comparisons)

    def _call(self, call: Callable, questions: list) -> list:
        refusal = (
            f"model.judge: {type(self.judge).__name__} has not answered for {self.seconds:g} seconds "
            "(model.guard.judge_timeout)"
        )
        return wait_for(self.seconds, refusal, call, questions)

    def __getattr__(self, name: str) -> Any:
        if name == "judge":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self.judge, name)
