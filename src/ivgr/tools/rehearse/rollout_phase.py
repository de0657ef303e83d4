"""The rollout of a rehearsal: drives the recipe's own engine by `roll_out`, to its own max_new_tokens.

Every step of decoding does its own bookkeeping, so that the KV cache grows as it would. Of the model's passes
and the draws of tokens, only some are run: the first STEPS, and every STRIDE-th, in which a cache that has
grown is read; in the others tensors of the same shape stand in. Of batches that are decoded one after the
other the first is run. The figures are multiplied out.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ivgr.core.query import Query
from ivgr.rollout.sampling import Sampling, SamplingConfig
from ivgr.rollout.transformers_engine import RolloutEngine
from ivgr.tools.rehearse.phases import Phases

STEPS, STRIDE = 16, 64


class RehearsedEngine:
    """Rolls out the first batch of queries and copies its responses to the others."""

    def __init__(self, engine: RolloutEngine, phases: Phases) -> None:
        self.engine = engine
        self.phases = phases
        self.steps = self.run = 0

    @property
    def sampling(self) -> SamplingConfig:
        return self.engine.sampling

    def answer(self, *_: Any) -> None:
        """Is not rehearsed: validation needs no more than a rollout."""

    def roll_out(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: list[Query], seed: int
    ) -> None:
        together = min(getattr(self.engine, "batch_queries", len(queries)), len(queries))
        batches = -(-len(queries) // together)
        with ShortenedDecoding(model, self.phases, batches) as shortened:
            self.engine.roll_out(model, tokenizer, queries[:together], seed)
        self.steps, self.run = shortened.passes.seen, shortened.passes.run
        template = {group.stream: group.rollouts for query in queries[:together] for group in query.groups}
        some = next(iter(template.values()))
        for query in queries[together:]:
            for group in query.groups:
                group.rollouts += template.get(group.stream, some)


class Thinned:
    """Calls `real` in some steps and `cheap` in the others; counts what the real calls do."""

    def __init__(self, real: Callable, cheap: Callable, phases: Phases) -> None:
        self.real, self.cheap, self.phases = real, cheap, phases
        self.seen = self.run = 0
        self.counts: Counter[str] = Counter()
        self.places: Counter[tuple[str, str]] = Counter()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        step, self.seen = self.seen, self.seen + 1
        if step >= STEPS and step % STRIDE:
            return self.cheap(*args, **kwargs)
        self.run += 1
        counts, places = self.phases.counts(), self.phases.integers.places.copy()
        found = self.real(*args, **kwargs)
        self.counts += self.phases.counts() - counts
        self.places += self.phases.integers.places - places
        return found

    def multiply(self) -> None:
        """Adds what the calls that were left out would have done."""
        if self.run:
            self.phases.multiply(self.counts, self.places, (self.seen - self.run) / self.run)


class ShortenedDecoding:
    """In its body, `model` and the sampling run in some steps of decoding only. The prefill counts for its
    own phase, and ends where a pass of one token a row begins."""

    def __init__(self, model: PreTrainedModel, phases: Phases, batches: int) -> None:
        self.inner, self.phases, self.batches = model.model, phases, batches
        self.passes = Thinned(self.inner.forward, self._skip_pass, phases)
        self.draws = Thinned(Sampling.choose, _skip_draw, phases)
        self.stack, self.stage = ExitStack(), ExitStack()

    def __enter__(self) -> "ShortenedDecoding":
        self.stack.enter_context(patch.object(self.inner, "forward", self._pass))
        draws = self.draws
        self.stack.enter_context(patch.object(Sampling, "choose", lambda *args: draws(*args)))
        self.stage.enter_context(self._phase("rollout_prefill"))
        return self

    def __exit__(self, *error: Any) -> None:
        self.passes.multiply()
        self.draws.multiply()
        self.stage.close()
        self.stack.close()

    def _pass(self, input_ids: torch.Tensor, **options: Any) -> Any:
        if input_ids.shape[1] > 1 or options.get("pixel_values") is not None:
            return self.passes.real(input_ids=input_ids, **options)
        if not self.passes.seen:
            self.stage.close()
            self.stage.enter_context(self._phase("rollout_decode"))
        return self.passes(input_ids=input_ids, **options)

    def _skip_pass(self, input_ids: torch.Tensor, **_: Any) -> Any:
        weight = self.inner.get_input_embeddings().weight
        return SimpleNamespace(last_hidden_state=weight.new_empty(*input_ids.shape, weight.shape[1]))

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Measures as phase `name`, and multiplies by the number of batches."""
        with self.phases.measure(name):
            yield
        self.phases.repeat(name, self.batches)


def _skip_draw(sampling: Sampling, logits: torch.Tensor, draw: torch.Tensor | None = None) -> tuple:
    """Token 0 for every row, which no model ends a response with."""
    token = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    probability = torch.zeros(len(logits), device=logits.device)
    return token, probability, probability
