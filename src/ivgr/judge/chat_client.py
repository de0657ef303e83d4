"""Many conversations with one OpenAI-compatible server: bounded in number, time and trust.

In: conversations (lists of {"role", "content"}) and a parser of replies. Out: what the
parser made of each, None where no good reply came in time. No fault of the server raises.
"""

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from ivgr.core.background import in_background
from ivgr.core.errors import UserError, install_hint
from ivgr.core.seeding import derive_seed
from ivgr.core.settings import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Seed, checked
from ivgr.judge.bounded_transport import REFUSED, bounded_client

T = TypeVar("T")
Conversation = list[dict[str, str]]
# connection: refused or broken off; timeout: too slow; busy: 5xx, 429 and their like;
# refused: other 4xx, never asked again; redirect: to another origin, not followed nor asked again;
# reply: not what was asked for, or too long; deadline: the batch's.
REASONS = ("connection", "timeout", "busy", "refused", "redirect", "reply", "deadline")
LONGEST_PAUSE = 30.0


@checked("judge: ")
class ChatClient:
    """Asks one model at one server.

    Args:
        base_url: The server's address up to and including /v1.
        model: The model's name at the server.
        api_key_env: Environment variable that holds the key; a server that wants none gets "none".
        concurrency: Requests under way at once.
        timeout: Seconds for one request, from sending to the last byte of the reply.
        retries: Further attempts when a request fails or its reply does not parse.
        pause: Seconds before the first further attempt, doubled for each next, with jitter.
        batch_seconds: Seconds for one batch; what is open then stays unanswered.
        temperature: Sampling temperature.
        max_tokens: Longest reply; one that is cut off counts as not parsed.
        extra_body: Further fields of every request, such as chat_template_kwargs of vLLM.
        seed: Seed of the jitter.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: PositiveInt = 32,
        timeout: PositiveFloat = 60.0,
        retries: NonNegativeInt = 4,
        pause: NonNegativeFloat = 1.0,
        batch_seconds: PositiveFloat = 600.0,
        temperature: NonNegativeFloat = 0.0,
        max_tokens: PositiveInt = 64,
        extra_body: dict | None = None,
        seed: Seed = 0,
    ) -> None:
        self.openai = _import_openai()
        self.base_url = base_url
        self.api_key_env = api_key_env
        self.concurrency = concurrency
        self.timeout = timeout
        self.retries = retries
        self.pause = pause
        self.batch_seconds = batch_seconds
        self.seed = seed
        self.request = {
            "model": model,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "extra_body": extra_body or {},
        }
        self.counts: Counter[str] = Counter()
        self.last_failure = ""

    def ask(
        self,
        conversations: list[Conversation],
        parse: Callable[[str], T | None],
        arrived: Callable[[int, T], None] | None = None,
        seconds: float | None = None,
        **fields: object,
    ) -> list[T | None]:
        """What `parse` made of the reply to each conversation, None where there is none.

        Args:
            parse: A reply's value; None says that it is nonsense, and the model is asked again.
            arrived: Called with (index, value) as soon as a value is there.
            seconds: Seconds for this batch, in place of `batch_seconds`.
            fields: Request fields of this batch, such as temperature or response_format.
        """
        if not conversations:
            return []
        batch = _Batch(self, parse, arrived, self.request | fields)
        # A thread of its own, since the caller's may run an event loop already (notebooks).
        limit = self.batch_seconds if seconds is None else seconds
        return in_background(asyncio.run, batch.ask_all(conversations, limit)).result()

    def take_counts(self) -> dict[str, float]:
        """Requests, retries and failed requests by reason since the last call."""
        names = ("requests", "retries", *(f"failures/{reason}" for reason in REASONS))
        taken, self.counts = self.counts, Counter()
        return {name: float(taken[name]) for name in names}


class _Batch:
    """The conversations of one call, in one event loop."""

    def __init__(self, client: ChatClient, parse: Callable, arrived: Callable | None, request: dict) -> None:
        self.client = client
        self.parse = parse
        self.arrived = arrived
        self.request = request
        self.gate = asyncio.Semaphore(client.concurrency)

    async def ask_all(self, conversations: list[Conversation], seconds: float) -> list:
        """A value or None for each, after at most `seconds`."""
        key = os.environ.get(self.client.api_key_env) or "none"
        openai = self.client.openai
        server = openai.AsyncOpenAI(
            base_url=self.client.base_url, api_key=key, max_retries=0, http_client=bounded_client(openai)
        )
        async with server:
            self.create: Any = server.chat.completions.with_raw_response.create
            tasks = [asyncio.create_task(self._persist(i, c)) for i, c in enumerate(conversations)]
            done, late = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
            for task in late:
                task.cancel()
                self._note("deadline", f"no reply within the batch's {seconds:g} s")
            await asyncio.gather(*late, return_exceptions=True)
        return [task.result() if task in done else None for task in tasks]

    async def _persist(self, index: int, conversation: Conversation) -> object:
        """Attempts until there is a value, the retries are used up or asking again is vain."""
        for attempt in range(self.client.retries + 1):
            async with self.gate:
                self.client.counts.update(requests=1, retries=int(attempt > 0))
                value, failure = await self._attempt(conversation)
            if value is not None:
                if self.arrived:
                    self.arrived(index, value)
                return value
            if failure in ("refused", "redirect"):
                return None
            if attempt < self.client.retries:
                await asyncio.sleep(self._pause(index, attempt))
        return None

    async def _attempt(self, conversation: Conversation) -> tuple[object, str]:
        """One request: (value, "") or (None, reason)."""
        openai = self.client.openai
        try:
            reply = await asyncio.wait_for(
                self.create(messages=conversation, timeout=self.client.timeout, **self.request),
                self.client.timeout,
            )
        except (TimeoutError, openai.APITimeoutError):
            return self._note("timeout", f"no reply within {self.client.timeout:g} s")
        except openai.APIConnectionError as error:
            return self._note("connection", str(error.__cause__ or error))
        except openai.APIStatusError as error:
            status, headers = error.status_code, error.response.headers
            if 300 <= status < 400:
                return self._note("redirect", f"status {status} to {headers.get('location', 'nowhere')}")
            refused = 400 <= status < 500 and status not in (408, 409, 425, 429)
            return self._note("refused" if refused else "busy", f"status {status}")
        response = reply.http_response
        text = read_reply(response.content)
        value = None if text is None else self.parse(text)
        if value is None:
            return self._note("reply", response.extensions.get(REFUSED, "a reply that is no verdict"))
        return value, ""

    def _note(self, reason: str, detail: str) -> tuple[None, str]:
        self.client.counts[f"failures/{reason}"] += 1
        if reason != "deadline" or not self.client.last_failure:  # which says less than what led to it
            self.client.last_failure = " ".join(detail.split())[:200]
        return None, reason

    def _pause(self, index: int, attempt: int) -> float:
        jitter = random.Random(derive_seed(self.client.seed, index, attempt)).uniform(0.5, 1.0)
        return min(self.client.pause * 2**attempt, LONGEST_PAUSE) * jitter


def read_reply(body: bytes) -> str | None:
    """The text of a chat completion, None if `body` is anything else or the text is cut off."""
    try:
        choice = json.loads(body)["choices"][0]
        text = choice["message"]["content"]
        whole = choice.get("finish_reason") != "length"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return text if isinstance(text, str) and whole else None


def _import_openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise UserError(f"the package openai is not installed; {install_hint('judge')}") from error
    return openai
