"""Settings of the update: how a run's losses become optimizer steps."""

from dataclasses import dataclass

from ivgr.core.settings import NonNegativeInt, PositiveFloat, PositiveInt, checked
from ivgr.packing.prefix_tree import Layout
from ivgr.trainer.loss import PolicyLossConfig
from ivgr.trainer.optimizer import OptimizerConfig, ScheduleConfig


@checked("model.update.")
@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """Settings of the update in every kind of training."""

    token_budget: PositiveInt = 4096
    """Padded tokens per micro-batch; lower it when memory runs out. A query whose tree is longer is split,
    down to one response per tree."""

    clip_norm: PositiveFloat | None = 1.0
    """Largest gradient norm; null clips none."""

    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-3)
    """Optimizer by timm name."""

    schedule: ScheduleConfig = ScheduleConfig(name="cosine")
    """Learning-rate schedule by timm name."""


@checked("model.update.")
@dataclass(frozen=True, kw_only=True)
class UpdateConfig(StepConfig):
    """Settings of the update in reinforcement learning."""

    token_budget: PositiveInt = 32768
    """Padded tokens per micro-batch; lower it when memory runs out. A query whose tree is longer is split,
    down to one response per tree."""

    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer by timm name."""

    schedule: ScheduleConfig = ScheduleConfig()
    """Learning-rate schedule by timm name."""

    loss: PolicyLossConfig = PolicyLossConfig()
    """Clip bounds, KL estimator and weight."""

    mini_batches: PositiveInt = 4
    """Optimizer updates per iteration and epoch."""

    epochs: PositiveInt = 1
    """Passes over an iteration's rollouts."""

    layout: Layout = "tree"
    """"tree" shares each query's prefix in scoring and update; "rows" shares nothing, for comparison."""

    resample: NonNegativeInt = 0
    """Rounds in which groups whose rewards are all equal are rolled out again."""

    drop_zero_std: bool = False
    """Leave groups whose rewards stay equal out of the update, KL included."""
