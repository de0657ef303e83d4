"""Lightning's Trainer, with the settings that this loop takes.

The others keep their names, so that a printed configuration can be read again, but have one value.
"""

# pyright: reportInvalidTypeForm=false
# The annotations are made at run time (`fixed`), for the parser.

from typing import Literal

import lightning as L
from lightning.pytorch.loggers import Logger

from ivgr.core.settings import NonNegativeInt, PositiveInt, fixed

LENGTH = "model.iterations, or data.steps or data.epochs of a cold start, says how long a run is"
PACKS = "an update is a whole mini-batch, in packs of model.update.token_budget tokens"
CLIPPING = "model.update.clip_norm clips gradients"
OneEpoch, NoEpochs = fixed(1, LENGTH), fixed(None, LENGTH)
NoClipping = fixed(None, CLIPPING)
NoTest = fixed(None, "`ivgr validate` and `ivgr evaluate` examine a policy")


class Trainer(L.Trainer):
    """Lightning's Trainer, in which a setting that this loop does not use is refused. TensorBoard, under
    trainer.default_root_dir, is always a logger; loggers that are named are added."""

    def __init__(
        self,
        *,
        devices: PositiveInt | list[NonNegativeInt] | str = "auto",
        num_nodes: PositiveInt = 1,
        logger: Logger | list[Logger] | None = None,
        fast_dev_run: fixed(False, "set model.iterations 1") = False,
        max_epochs: OneEpoch = 1,
        min_epochs: NoEpochs = None,
        max_steps: PositiveInt | Literal[-1] = -1,
        min_steps: NoEpochs = None,
        max_time: str | None = None,
        limit_train_batches: NoEpochs = None,
        limit_val_batches: PositiveInt | None = None,
        limit_test_batches: NoTest = None,
        limit_predict_batches: NoTest = None,
        overfit_batches: fixed(0.0, "point data.train to few samples") = 0.0,
        val_check_interval: PositiveInt | str | None = None,
        check_val_every_n_epoch: fixed(1, "trainer.val_check_interval counts iterations") = 1,
        num_sanity_val_steps: fixed(0, "the first evaluation comes before training anyway") = 0,
        log_every_n_steps: PositiveInt | None = None,
        enable_checkpointing: fixed(None, "checkpoint_every says how often a run saves") = None,
        accumulate_grad_batches: fixed(1, PACKS) = 1,
        gradient_clip_val: NoClipping = None,
        gradient_clip_algorithm: NoClipping = None,
        use_distributed_sampler: fixed(True, "the data module deals queries to ranks") = True,
        barebones: fixed(False, "the run records itself") = False,
        sync_batchnorm: fixed(False, "no policy has batch norm") = False,
        reload_dataloaders_every_n_epochs: fixed(0, "there is one epoch") = 0,
        model_registry: fixed(None, "`ivgr export` writes the policy") = None,
        **others,
    ) -> None:
        own = {name: value for name, value in locals().items() if name not in ("self", "others", "__class__")}
        super().__init__(**own, **others)
