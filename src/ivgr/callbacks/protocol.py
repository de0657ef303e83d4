"""The attributes of the trained module that callbacks may read, and the few methods that they may call.

A callback that names one of these types reads nothing else of a module, apart from what is
LightningModule's own; tests/callbacks/test_protocol.py reads the callbacks' source and holds them to it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from transformers import PreTrainedModel, ProcessorMixin

from ivgr.core.metric import ValidationMetric
from ivgr.core.query import Query
from ivgr.data.encode import EncodingConfig, QueryEncoder
from ivgr.evaluation.held_out import HeldOutFigures
from ivgr.judge import Judge
from ivgr.rollout.transformers_engine import RolloutEngine


class TrainedModule(Protocol):
    """The module of either kind of training. kind is "rl" or "sft"; iterations counts the whole run, and
    length names the setting that gives it; metrics holds the metrics of the last finished iteration, by the
    names that `ivgr.plotting.tags` knows."""

    kind: str
    length: str
    iterations: int
    metrics: dict[str, float]
    check_preempted: Callable[
        [], None
    ]  # which `Preemption` sets; it raises where an iteration can be given up

    def roll_back(self) -> None:
        """Forgets what an iteration that is given up has found."""


@runtime_checkable
class AnsweringModule(Protocol):
    """Answers queries greedily, and says by whom the answers are judged."""

    engine: RolloutEngine
    judge: Judge
    processor: ProcessorMixin
    encoder: QueryEncoder
    encoding: EncodingConfig
    device: torch.device

    def validation_metrics(self) -> Sequence[ValidationMetric]:
        """Returns the data module's own validation metrics, in addition to those that every run has."""
        ...

    def rollout_policy(self) -> PreTrainedModel:
        """The policy that rolls out; all ranks must call it."""
        ...

    def join_answers(self) -> None:
        """Ends a series of answers, of which one rank may need more than another; all ranks must call it
        before they next wait for one another."""


class RLModule(TrainedModule, AnsweringModule, Protocol):
    """The module of reinforcement learning. iteration counts finished iterations; everyone holds the queries
    of all ranks in the last one, with scored rollouts; figures are those of the last validation."""

    iteration: int
    everyone: list[Query]
    figures: HeldOutFigures
    validation_figures: list[str]


class ColdStartModule(TrainedModule, AnsweringModule, Protocol):
    """The module of a cold start, which leaves a model behind."""

    export_folder: Path

    def save_policy(self, folder: Path) -> None:
        """The policy as a HF directory; all ranks must call it."""
