"""A run as its config describes it, read by the parser of `ivgr fit`; nothing is instantiated.

In: a config file, and what to suppose of the data. Out: a `RunSpec`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse._util import import_object
from torch import nn
from transformers import PreTrainedConfig

from ivgr.core.errors import UserError
from ivgr.core.settings import Dtype, dtype_of
from ivgr.data.stream import BatchComposition
from ivgr.distributed.tensor_parallel import check_node, check_parts
from ivgr.launch.lightning_cli import parse_fit
from ivgr.rollout.sampling import SamplingConfig
from ivgr.tools.plan.model_shape import Shape, find_config, read_shape
from ivgr.toy.tiny_model import TinyScratch
from ivgr.trainer.optimizer import OptimizerConfig
from ivgr.trainer.sft_module import SFT

FP32 = 4
TEXT = 256  # tokens of a prompt that are no image, beside the instruction, at the least
SHARDING = ("fsdp", "deepspeed", "modelparallel", "shard")


@dataclass(frozen=True)
class AssumedLengths:
    """Lengths of the data, in tokens: a query's images after the merge of patches, its question and
    everything else before the instruction, a stream's instruction, a response."""

    image_tokens: int = 2500
    prompt: int = 200
    instruction: int = 40
    response: int = 300

    @classmethod
    def within(cls, prompt: int, response: int) -> "AssumedLengths":
        """The longest where a prompt and a response have at most so many tokens: images fill the prompt."""
        images = max(prompt - TEXT - cls.instruction, 0)
        return cls(images, max(prompt - images - cls.instruction, 0), cls.instruction, response)

    @property
    def prefix(self) -> int:
        return self.image_tokens + self.prompt

    def tree(self, streams: int, group: int) -> int:
        """Tokens of a query's tree."""
        return self.prefix + streams * (self.instruction + group * self.response)

    def rows(self, streams: int, group: int) -> int:
        """Tokens of the same rollouts as separate rows."""
        return streams * group * (self.prefix + self.instruction + self.response)


@dataclass(frozen=True)
class RunSpec:
    """lengths: of the data, as supposed; longest: as the config allows; weight, compute: bytes of a weight
    and of an activation; states: numbers of optimizer state per trained weight; rank: of low-rank adapters, 0
    for none; paired, single: queries an iteration on each GPU (of a cold start: demonstrations per step, all
    single, group 1); cache_room: the most bytes of a rollout's cache; tp_ranks: GPUs that share a copy of the
    policy in rollouts; node_gpus: GPUs of a node; workers: reading processes of each."""

    shape: Shape
    lengths: AssumedLengths
    longest: AssumedLengths
    cold_start: bool
    gpus: int
    weight: int
    compute: int
    states: float
    sharded: bool
    checkpointing: bool
    rank: int
    frozen_tower: bool
    paired: int
    single: int
    group: int
    updates: int
    epochs: int
    iterations: int
    batch_queries: int
    max_new_tokens: int
    token_budget: int
    layout: str
    cache_room: float = math.inf
    tp_ranks: int = 1
    node_gpus: int = 1
    workers: int = 0

    def at_limits(self) -> "RunSpec":
        """The run on data as long as the config allows."""
        return replace(self, lengths=self.longest)

    @property
    def trained(self) -> int:
        """Weights that are trained."""
        if self.rank:
            return self.rank * self.shape.linears
        return self.shape.total - self.shape.tower * self.frozen_tower

    @property
    def trained_weight(self) -> int:
        """Bytes of a trained weight; adapters are in fp32."""
        return FP32 if self.rank else self.weight

    @property
    def trains_tower(self) -> bool:
        return not self.rank and not self.frozen_tower

    @property
    def shards(self) -> int:
        return self.gpus if self.sharded else 1


def read_run(config: Path, gpus: int | None, typical: AssumedLengths) -> RunSpec:
    """The run of `config` on `gpus` (default: its own devices x nodes). UserError as the parser's,
    and for an unknown policy."""
    fit = parse_fit(config)
    model, data = fit["model"]["init_args"], fit["data"]["init_args"]
    cold_start = import_object(fit["model"]["class_path"]).kind == SFT.kind
    gpus = gpus or count_gpus(fit["trainer"])
    engine, update = model["engine"]["init_args"], model["update"]
    sampling = SamplingConfig(**engine["sampling"])
    longest = sampling.max_new_tokens
    described, dtype = _policy(model["policy"])
    weight = dtype_of(dtype).itemsize
    mix = BatchComposition(0, data["batch"] // gpus) if cold_start else _mix(data, gpus)
    return RunSpec(
        shape=read_shape(described),
        lengths=typical if cold_start else replace(typical, response=min(typical.response, longest)),
        longest=AssumedLengths.within(model["encoding"]["max_prompt_tokens"], longest),
        cold_start=cold_start,
        gpus=gpus,
        weight=weight,
        compute=_compute(fit["trainer"]["strategy"], weight),
        states=measure_states(OptimizerConfig(**update["optimizer"]).create),
        paired=mix.paired,
        single=mix.single,
        group=1 if cold_start else sampling.group_size,
        updates=1 if cold_start else update["mini_batches"],
        epochs=1 if cold_start else update["epochs"],
        iterations=1 if cold_start else model["iterations"],
        batch_queries=engine["batch_queries"],
        max_new_tokens=longest,
        token_budget=update["token_budget"],
        layout="tree" if cold_start else update["layout"],
        tp_ranks=_tp_ranks(fit["trainer"], described, gpus),
        node_gpus=gpus_of_node(fit["trainer"], gpus),
        workers=data["workers"],
        **_thrift(fit["trainer"], model["trainable"]),
    )


def measure_states(create: Callable[[nn.Module], torch.optim.Optimizer]) -> float:
    """Numbers of state per trained weight of the optimizer that `create` makes: a step on a matrix tells."""
    matrix = nn.Linear(128, 128, bias=False)
    steps = create(matrix)
    matrix(torch.ones(1, 128)).sum().backward()
    steps.step()
    state = steps.state[matrix.weight]
    held = sum(part.numel() for part in state.values() if isinstance(part, torch.Tensor) and part.dim())
    return held / matrix.weight.numel()


def _thrift(trainer: dict, trainable: dict) -> dict[str, Any]:
    """Returns what the config does to save memory."""
    return {
        "sharded": any(word in str(trainer["strategy"]).casefold() for word in SHARDING),
        "checkpointing": trainable["gradient_checkpointing"],
        "rank": (trainable["adapter"] or {"rank": 0})["rank"],
        "frozen_tower": "vision" in trainable["freeze"],
    }


def _compute(strategy: Any, weight: int) -> int:
    """Bytes of what a pass computes in."""
    dtype = _arguments(strategy).get("param_dtype")
    return dtype_of(dtype).itemsize if dtype else weight


def _tp_ranks(trainer: dict, policy: PreTrainedConfig, gpus: int) -> int:
    """GPUs that share a copy of the policy in rollouts; UserError where they cannot."""
    ranks = _arguments(trainer["strategy"]).get("rollout_tensor_parallel", 1)
    check_node(ranks, gpus_of_node(trainer, gpus))
    check_parts(policy, ranks)
    return ranks


def _arguments(strategy: Any) -> dict[str, Any]:
    return {} if isinstance(strategy, str) else strategy.get("init_args") or {}


def _policy(policy: Any) -> tuple[Any, Dtype]:
    """Configuration and dtype of `model.policy`."""
    if isinstance(policy, str):
        return find_config(policy), "float32"
    arguments = policy["init_args"]
    if policy["class_path"].endswith(TinyScratch.__name__):
        return TinyScratch(**arguments).load()[0].config, "float32"
    if "path" not in arguments:
        raise UserError(f"plan: cannot tell the shape of a policy of class {policy['class_path']}")
    return find_config(arguments["path"]), arguments.get("dtype", "float32")


def count_gpus(trainer: dict) -> int:
    """GPUs of the config."""
    return trainer["num_nodes"] * gpus_of_node(trainer)


def gpus_of_node(trainer: dict, gpus: int = 0) -> int:
    """GPUs of each node of the config, or where there are `gpus` in all: the most of them that divide those.
    "auto" and -1 are taken for one per node."""
    devices = trainer["devices"]
    each = len(devices) if isinstance(devices, list) else devices
    return math.gcd(int(each) if str(each).isdecimal() else 1, gpus)


def prompts_each(data: dict, gpus: int) -> int:
    """An iteration's prompts on each of `gpus`; UserError unless they are dealt evenly."""
    if data["prompts"] % gpus:
        raise UserError(f"data.prompts is {data['prompts']}, must be a multiple of the {gpus} GPUs")
    return data["prompts"] // gpus


def _mix(data: dict, gpus: int) -> BatchComposition:
    prompts = prompts_each(data, gpus)
    if len(data["streams"]) == 1:  # every query is then of one stream, as single ones are
        return BatchComposition(0, prompts)
    return BatchComposition.of(prompts, data["paired_ratio"])
