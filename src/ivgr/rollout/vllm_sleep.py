"""The one owner of a vLLM engine's waking and sleeping.

In: an engine, and what loads weights into its model. Out: the engine, awake for the length of a
`with`. However that ends, the engine sleeps afterwards, has no request left and has forgotten all
that it computed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn

TAGS = ("weights", "kv_cache")
# What `nn.Module` registers, and what vLLM itself makes anew on waking.
ELSEWHERE = {"_parameters", "_buffers", "_modules", "kv_cache"}


class SleepingEngine:
    """A `vllm.LLM` that is awake only in `awake`.

    Args:
        llm: The engine, awake.
        level: 2 forgets the weights in sleep, 1 keeps a copy in host memory.
    """

    def __init__(self, llm: Any, level: int) -> None:
        self.llm = llm
        self.level = level
        self.asleep: list[str] = []
        self.interrupted = False
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    @contextmanager
    def awake(self, load: Callable[[nn.Module], None]) -> Iterator[Any]:
        """The engine, its weights given by `load`, all caches empty. RuntimeError if vLLM does not
        wake or keeps what it computed with earlier weights."""
        self._sleep()  # when it is new, and after a sleep that failed
        try:
            self._wake("weights")
            self.llm.apply_model(load)
            self._wake("kv_cache")
            if self.llm.llm_engine.is_sleeping():
                raise RuntimeError("vLLM does not wake up")
            self._clear_caches()
            yield self.llm
        except BaseException as error:
            try:
                self._sleep()
            except Exception as failure:  # what went wrong first is what is told
                error.add_note(f"vLLM could not be put to sleep ({failure})")
            raise
        self._sleep()

    def _wake(self, tag: str) -> None:
        self.llm.wake_up(tags=[tag])
        self.asleep.remove(tag)
        if tag == "weights":
            self._restore()

    def _sleep(self) -> None:
        """Puts the engine to sleep; does nothing if it sleeps already."""
        if self.interrupted:
            # The workers know best what of their memory is gone.
            self.llm.collective_rpc("wake_up")
            self._restore()
        elif len(self.asleep) == len(TAGS):
            return
        for tag in list(self.asleep):  # vLLM 0.30 leaves an engine that is half awake as it is
            self._wake(tag)
        self._abort_requests()
        if self.level == 2:
            self.llm.apply_model(self._keep)
        self.interrupted = True
        self.llm.sleep(level=self.level)
        self.interrupted = False
        self.asleep = list(TAGS)

    def _abort_requests(self) -> None:
        """Sleeping aborts them where they are computed, but not where they are awaited."""
        engine = self.llm.llm_engine
        engine.abort_request(list(engine.output_processor.request_states), internal=True)

    def _clear_caches(self) -> None:
        """No cache knows with which weights an entry was computed."""
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM keeps its prefix cache, since a request still holds a part of it")
        self.llm.reset_mm_cache()
        self.llm.llm_engine.reset_encoder_cache()

    def _keep(self, model: nn.Module) -> None:
        self.kept = [(tensor, tensor.cpu().clone()) for tensor in unregistered_tensors(model)]

    @torch.inference_mode()
    def _restore(self) -> None:
        for tensor, copy in self.kept:
            tensor.copy_(copy)
        self.kept = []


def unregistered_tensors(model: nn.Module) -> list[torch.Tensor]:
    """Tensors that modules hold as attributes, or in lists, tuples and dictionaries, and have not
    registered. Level 2 discards them with the weights, and neither vLLM, which restores buffers, nor
    the policy, which has parameters, brings them back."""
    registered = {tensor.data_ptr() for tensor in chain(model.parameters(), model.buffers())}
    held = [
        tensor
        for module in model.modules()
        for name, value in vars(module).items()
        if name not in ELSEWHERE
        for tensor in _tensors_in(value)
    ]
    return list({id(t): t for t in held if t.numel() and t.data_ptr() not in registered}.values())


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(part)
