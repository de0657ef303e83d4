"""A language model behind an OpenAI-compatible server (vLLM, SGLang, hosted) as the judge.

In: batches of questions. Out: verdicts, from the cache where it has them, None where none
came. When too many are missing the run waits and asks again, and in the end stops.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from statistics import fmean

from ivgr.core.errors import UserError
from ivgr.core.printable import in_line
from ivgr.core.settings import NonNegativeFloat, PositiveInt, Share, checked
from ivgr.judge.chat_client import LONGEST_PAUSE, ChatClient
from ivgr.judge.protocol import Agreement, Comparison
from ivgr.judge.rubric import (
    AGREEMENT,
    CONSISTENCY,
    Rubric,
    Structured,
    agreement_data,
    comparison_data,
)
from ivgr.judge.verdict_cache import VerdictCache, content_key

LOGGER = logging.getLogger("ivgr")


@checked("model.judge.")
class LLMJudge:
    """Asks a language model at a server: one verdict on an answer, the mean of `votes` on reasoning.

    Its other settings are those of `ChatClient`.

    Args:
        base_url: The server's address up to and including /v1.
        model: The model's name at the server.
        votes: Verdicts on each reasoning; a score needs all of them.
        temperature: Of the verdicts on reasoning; null is 0 for one vote, 0.5 for several.
        cache: A sqlite file of verdicts, which runs may share; null keeps none.
        missing_limit: Share of a batch's verdicts that may be missing; past it the run waits.
        patience: Seconds to wait for a judge that does not answer before the run stops (the
            other ranks wait as long: keep it below the half hour after which they give up).
        structured: How the server is told the form of a verdict; "none" leaves it to the prompt.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        votes: PositiveInt = 1,
        temperature: NonNegativeFloat | None = None,
        cache: str | None = "runs/judge.sqlite",
        missing_limit: Share = 0.1,
        patience: NonNegativeFloat = 1200.0,
        structured: Structured = "json_schema",
        **server,
    ) -> None:
        self.client = ChatClient(base_url, model, **server)
        self.votes = votes
        self.missing_limit = missing_limit
        self.patience = patience
        self.temperature = (0.5 if votes > 1 else 0.0) if temperature is None else temperature
        self.structured: Structured = structured
        self.cache = VerdictCache(cache)
        self.counts: Counter[str] = Counter()

    def agree(self, questions: list[Agreement]) -> list[bool | None]:
        """See `Judge.agree`; UserError when the judge stays away longer than `patience`."""
        return self._judge(AGREEMENT, [agreement_data(question) for question in questions], 1, 0.0)

    def compare(self, comparisons: list[Comparison]) -> list[float | None]:
        """See `Judge.compare`; UserError when the judge stays away longer than `patience`.
        Blank reasoning agrees with nothing: 0.0 without a request."""
        said = [comparison for comparison in comparisons if comparison.reasoning.strip()]
        data = [comparison_data(comparison) for comparison in said for _ in range(self.votes)]
        votes = self._judge(CONSISTENCY, data, self.votes, self.temperature)
        scores = (_mean(votes[i : i + self.votes]) for i in range(0, len(votes), self.votes))
        return [next(scores) if comparison.reasoning.strip() else 0.0 for comparison in comparisons]

    def report(self) -> dict[str, float]:
        """Requests, retries, failures by reason, cache hits and pauses since the last call."""
        taken, self.counts = self.counts, Counter()
        own = {name: float(taken[name]) for name in ("cache_hits", "pauses")}
        return self.client.take_counts() | own

    def _judge(self, rubric: Rubric, data: list[dict], votes: int, temperature: float) -> list:
        """A verdict on each of `data`, in which every question stands `votes` times in a row."""
        fields = {"temperature": temperature, **rubric.response_format(self.structured)}
        conversations = [rubric.conversation(entry) for entry in data]
        request = self.client.request | fields
        keys = [content_key(request, chat, i % votes) for i, chat in enumerate(conversations)]
        verdicts = [self._recall(rubric, key) for key in keys]

        def ask(seconds: float | None) -> None:
            open_ = [i for i, verdict in enumerate(verdicts) if verdict is None]

            def keep(index: int, verdict: bool | float) -> None:
                verdicts[open_[index]] = verdict
                self.cache.put(keys[open_[index]], rubric.write(verdict))

            chats = [conversations[i] for i in open_]
            try:
                self.client.ask(chats, rubric.parse, arrived=keep, seconds=seconds, **fields)
            finally:
                self.cache.save()

        ask(None)
        self._wait_until_few_are_missing(verdicts, ask)
        return verdicts

    def _recall(self, rubric: Rubric, key: str) -> bool | float | None:
        """The cached verdict; UserError if what is stored is none."""
        stored = self.cache.get(key)
        if stored is None:
            return None
        verdict = rubric.parse(stored)
        if verdict is None:
            raise UserError(f"judge cache {self.cache.path}: holds {stored[:40]!r}, no verdict; move it away")
        self.counts["cache_hits"] += 1
        return verdict

    def _wait_until_few_are_missing(self, verdicts: list, ask: Callable[[float], None]) -> None:
        """Says so and asks again, ever less often, while more than `missing_limit` are missing."""
        if not self._too_many_missing(verdicts):
            return
        end, pause = time.monotonic() + self.patience, self.client.pause
        self.counts["pauses"] += 1
        complaint = in_line(self._complaint(verdicts))
        LOGGER.warning("judge: %s; waiting up to %g s", complaint, self.patience)
        while self._too_many_missing(verdicts):
            time.sleep(max(min(pause, end - time.monotonic()), 0.0))
            left = end - time.monotonic()
            if left <= 0:
                raise UserError(f"judge: {self._complaint(verdicts)} within {self.patience:g} s")
            ask(left)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _too_many_missing(self, verdicts: list) -> bool:
        return verdicts.count(None) > self.missing_limit * len(verdicts)

    def _complaint(self, verdicts: list) -> str:
        return (
            f"{self.client.base_url} gave no verdict on {verdicts.count(None)} of {len(verdicts)} "
            f"questions (last: {self.client.last_failure})"
        )


def _mean(votes: list[float | None]) -> float | None:
    """The mean of all votes, None if one is missing."""
    known = [vote for vote in votes if vote is not None]
    return fmean(known) if len(known) == len(votes) else None
