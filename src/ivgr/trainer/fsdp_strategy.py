"""`trainer.strategy: fsdp2`: Lightning's ModelParallelStrategy with all ranks along the data axis,
and its checkpoints as folders that hold no pickled code."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch.distributed.constants import default_pg_timeout
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PreTrainedModel

from ivgr.core.checkpoint_file import find_checkpoint
from ivgr.core.errors import UserError
from ivgr.core.lightning_private import spread_data_over_all_ranks
from ivgr.core.settings import Dtype, PositiveInt, checked, dtype_of
from ivgr.core.sharding import is_sharded
from ivgr.distributed.fsdp import Replica, shard
from ivgr.distributed.tensor_parallel import check_node
from ivgr.trainer.reference import Reference
from ivgr.trainer.resume import admit
from ivgr.trainer.sharded_checkpoint import read_folder, write_folder


@checked("trainer.strategy.")
class FSDP2(ModelParallelStrategy):
    """Weights, gradients and optimizer state sharded over all ranks.

    Args:
        param_dtype: Weight dtype of forward and backward passes and of the rollouts; null for that of
            the policy.
        reduce_dtype: Dtype in which gradients are summed over ranks.
        process_group_backend: "nccl", "gloo", …; null chooses by device.
        rollout_tensor_parallel: GPUs of a node that share one copy of the weights in rollouts, each with a
            part of every layer; 1 for a whole copy on each. It must divide trainer.devices and the policy's
            heads.
    """

    shards_weights = True

    def __init__(
        self,
        param_dtype: Dtype | None = None,
        reduce_dtype: Dtype = "float32",
        process_group_backend: Literal["gloo", "nccl"] | None = None,
        rollout_tensor_parallel: PositiveInt = 1,
    ) -> None:
        super().__init__(tensor_parallel_size=1, process_group_backend=process_group_backend)
        self.param_dtype = None if param_dtype is None else dtype_of(param_dtype)
        self.reduce_dtype = dtype_of(reduce_dtype)
        self.rollout_tensor_parallel = rollout_tensor_parallel

    def setup_environment(self) -> None:
        check_node(self.rollout_tensor_parallel, self.num_processes)
        spread_data_over_all_ranks(self)
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        if not any(is_sharded(weight) for weight in self._whole().parameters()):
            raise UserError("trainer.strategy fsdp2 is for ivgr.IVGR and ivgr.SFT; use ddp with other models")
        super().setup(trainer)

    def split(self, policy: PreTrainedModel, reference: Reference | None) -> Replica:
        """Shards both over the ranks; returns the replica that rolls out. UserError if the reference
        cannot be sharded, or the replica not be split."""
        replica = Replica(policy, self.param_dtype, self._tp_group())
        # The model casts its inputs itself; what it computes in float32, such as rotary angles, stays so.
        precision = MixedPrecisionPolicy(self.param_dtype, self.reduce_dtype, cast_forward_inputs=False)
        split = partial(shard, mesh=self.device_mesh["data_parallel"], precision=precision)
        split(policy)
        if reference is not None:
            reference.shard(split)
        return replica

    def _tp_group(self) -> dist.ProcessGroup | None:
        """Returns the ranks that share this rank's copy, which follow one another; None if it is alone."""
        if self.rollout_tensor_parallel == 1:
            return None
        return dist.new_subgroups(self.rollout_tensor_parallel, timeout=default_pg_timeout)[0]

    def lightning_module_state_dict(self) -> dict:
        """Returns nothing: `save_checkpoint` writes each rank's shard itself."""
        return {}

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict:
        return {}

    def save_checkpoint(self, checkpoint: dict, filepath: str | Path, storage_options: Any = None) -> None:
        rest = {k: v for k, v in checkpoint.items() if k not in ("state_dict", "optimizer_states")}
        write_folder(Path(filepath), self._whole(), self._optimizer(), rest, self.global_rank)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict:
        path = Path(checkpoint_path)
        find_checkpoint(path, sharded=True)
        module = self.lightning_module
        return read_folder(
            path, self._whole(), self._optimizer(), lambda rest: admit(module, rest, path, sharded=True)
        )

    def _whole(self) -> torch.nn.Module:
        """Returns the module that Lightning has set by then."""
        assert self.model is not None, "set by Trainer.fit"
        return self.model

    def _optimizer(self) -> torch.optim.Optimizer | None:
        return self.optimizers[0] if self.optimizers else None


StrategyRegistry.register("fsdp2", FSDP2, description=FSDP2.__doc__)
