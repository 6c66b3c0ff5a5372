"""How fast a training goes: its learning rate and its facts per second."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override


class TrainingRate(Callback):
    """Logs the learning rate of every optimizer step, and after each epoch the speed.

    Logged metrics:

    - `train/lr`: learning rate of the optimizer's first group of parameters, each optimizer step.
    - `train/facts_per_s`: facts of the epoch per second, over all processes, from the epoch's start to the end of its
      last step; what is measured between epochs is left out.
    """

    def __init__(self) -> None:
        self._num_facts: Tensor | int = 0
        self._began = self._ended = 0.0

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._num_facts, self._began = 0, time.monotonic()

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        pl_module.log("train/lr", float(optimizer.param_groups[0]["lr"]), on_step=True, batch_size=1)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._num_facts = self._num_facts + (~batch.is_filler).sum()  # on its device, without waiting for it
        self._ended = time.monotonic()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._ended > self._began:  # not an epoch that had no step left
            rate = float(self._num_facts) / (self._ended - self._began)
            pl_module.log("train/facts_per_s", rate, batch_size=1, sync_dist=True, reduce_fx="sum")
