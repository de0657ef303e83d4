"""An engine that answers one query at a time and lets its tokens be seen as they are chosen."""

import sys
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ivgr.core.printable import printable
from ivgr.core.query import Query
from ivgr.models.forward import banned_ids
from ivgr.rollout.sampling import Sampling
from ivgr.rollout.transformers_engine import TransformersEngine


@dataclass
class StreamingEngine:
    """Answers at `temperature` (0: greedy); aloud, it writes the text to stdout meanwhile, each
    answer under the name of its stream, from what the prompt has opened of it on."""

    engine: TransformersEngine
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stream_reply: bool = False

    def answer(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: list[Query]
    ) -> None:
        """Appends one rollout to each group; aloud, there must be one group in all."""
        sampling = Sampling(self.temperature, self.top_p, tuple(banned_ids(model)))
        if not self.stream_reply:
            self.engine.respond(model, tokenizer, queries, sampling, 1, self.seed)
            return
        ((group,),) = (query.groups for query in queries)
        print(f"[{group.stream}]\n{printable(group.opened)}", end="", flush=True)
        self.engine.respond(model, tokenizer, queries, sampling, 1, self.seed, TokenPrinter(tokenizer))
        print()


@dataclass
class TokenPrinter:
    """Writes the one branch that is being decoded, character by whole character."""

    tokenizer: PreTrainedTokenizerBase

    def __post_init__(self) -> None:
        self.tokens: list[int] = []
        self.written = 0

    def __call__(self, branches: torch.Tensor, tokens: torch.Tensor) -> None:
        self.tokens += tokens.tolist()
        text = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # half a character: its other bytes are to come
            sys.stdout.write(printable(text[self.written :]))
            sys.stdout.flush()
            self.written = len(text)
