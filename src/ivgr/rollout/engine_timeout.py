"""A rollout engine with a timeout. In: any engine. Out: its rollouts, or a UserError."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ivgr.core.background import wait_for
from ivgr.core.query import Query
from ivgr.rollout.sampling import SamplingConfig
from ivgr.rollout.transformers_engine import RolloutEngine


def with_engine_timeout(engine: RolloutEngine, seconds: float | None) -> RolloutEngine:
    return engine if seconds is None else TimeoutEngine(engine, seconds)


class TimeoutEngine:
    """Calls `engine` in a thread of its own and waits for at most `seconds`; a call that hangs
    is left behind when the program ends."""

    def __init__(self, engine: RolloutEngine, seconds: float) -> None:
        self.engine = engine
        self.seconds = seconds

    @property
    def sampling(self) -> SamplingConfig:
        return self.engine.sampling

    def roll_out(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: list[Query], seed: int
    ) -> None:
        self._call(self.engine.roll_out, model, tokenizer, queries, seed)

    def answer(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: list[Query]
    ) -> None:
        self._call(self.engine.answer, model, tokenizer, queries)

    def _call(self, call: Callable, model: PreTrainedModel, *arguments) -> None:
        refusal = (
            f"the rollout engine has not returned for {self.seconds:g} seconds (model.guard.engine_timeout)"
        )
        wait_for(self.seconds, refusal, _on_device, call, model, *arguments)


def _on_device(call: Callable, model: PreTrainedModel, *arguments) -> None:
    """Runs `call` on the model's device; a new thread would start on the first GPU."""
    if model.device.type == "cuda":
        torch.cuda.set_device(model.device)
    call(model, *arguments)
