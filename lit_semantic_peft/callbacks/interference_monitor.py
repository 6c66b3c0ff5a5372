"""Watches during training which facts work against each other."""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.interference import gradient_matrix
from lit_semantic_peft.metrics import GradientInterference
from lit_semantic_peft.reports import InterferenceRecord, RunFolder, write_interference
from lit_semantic_peft.training import SemanticPeftModule


class InterferenceMonitor(Callback):
    """Measures the gradient matrix over a sample of the kept facts: before training, every n epochs, and at the end.

    Interference is hardly there at the start and grows, so its course is what to look at. Training is not touched:
    mode, gradients and random generators are as they were, and a run with and without the monitor is the same run.
    One measurement costs about a forward and a backward pass of the sampled facts.

    Logged metrics, each in the loggers under the optimizer step:

    - `interference/conflict_rate`: share of the pairs whose gradient cosine is below −threshold, [0, 1].
    - `interference/gradient_cosine_mean`: mean cosine of the pairs, [−1, 1].
    - `interference/net_transfer_median`: median of what the others do to a fact, relative to its own effect.
    - `interference/share_net_transfer_below_0`, `interference/share_net_transfer_below_minus_1`: shares of the facts
      that the others hurt on balance, and that the others undo, [0, 1].
    - `interference/harm_done_top_tenth`: share of all harm that the most harmful tenth of the facts does, [0, 1].

    Args:
        num_facts: Size of the sample; 0 turns the monitor off.
        every_n_epochs: Epochs between two measurements; 0 for only before training and at its end.
        seed: Of the sample.
        batch_size: Facts per forward pass of a measurement.
        threshold: τ ≥ 0; a pair is in conflict where its cosine is below −τ.
    """

    def __init__(
        self,
        num_facts: int = 48,
        every_n_epochs: int = 2,
        seed: int = 0,
        batch_size: int = 16,
        threshold: float = 0.05,
    ) -> None:
        for name, value, least in (
            ("num_facts", num_facts, 0),
            ("every_n_epochs", every_n_epochs, 0),
            ("batch_size", batch_size, 1),
            ("threshold", threshold, 0),
        ):
            if value < least:
                raise InputError(f"`{name}` must be at least {least}, got {value}")
        self.num_facts = num_facts
        self.every_n_epochs = every_n_epochs
        self.seed = seed
        self.batch_size = batch_size
        self.threshold = threshold
        self.records: list[InterferenceRecord] = []
        self.latest: GradientInterference | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures before the first step of a new run.

        Args:
            trainer: The trainer.
            pl_module: The `SemanticPeftModule`.
        """
        if trainer.global_step == 0:
            self._measure(trainer, pl_module, epoch=0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures after every n-th epoch.

        Args:
            trainer: The trainer.
            pl_module: The `SemanticPeftModule`.
        """
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._measure(trainer, pl_module, epoch=trainer.current_epoch + 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures at the end, unless the last epoch just was, and keeps the matrix in the run folder.

        Args:
            trainer: The trainer.
            pl_module: The `SemanticPeftModule`.
        """
        if self.latest is None or self.records[-1].global_step != trainer.global_step:
            self._measure(trainer, pl_module, epoch=trainer.current_epoch)
        self._keep(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures where training had ended before this run was resumed: a checkpoint has the numbers, not the matrix.

        Args:
            trainer: The trainer.
            pl_module: The `SemanticPeftModule`.
        """
        if self.latest is None:
            self._measure(trainer, pl_module, epoch=trainer.current_epoch)
            self._keep(trainer)

    def _keep(self, trainer: Trainer) -> None:
        if self.latest is None:
            return
        result = self.latest.compute()  # on every rank: it may be a collective
        if trainer.is_global_zero:
            write_interference(
                RunFolder(trainer.default_root_dir).interference,
                result["gradient_dot"].numpy(),
                result["fact_index"].numpy(),
                epoch=self.records[-1].epoch,
                global_step=self.records[-1].global_step,
            )

    def state_dict(self) -> dict[str, Any]:
        """The measurements so far, for the checkpoint."""
        return {"records": [asdict(record) for record in self.records]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the measurements from a checkpoint.

        Args:
            state_dict: From `state_dict`.
        """
        self.records = [InterferenceRecord(**record) for record in state_dict["records"]]

    def _measure(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        if not self.num_facts:
            return
        assert isinstance(pl_module, SemanticPeftModule)
        prepared = pl_module.data.prepared
        kept = prepared.kept_index
        generator = np.random.default_rng(self.seed)
        sample = sorted(generator.choice(kept, min(self.num_facts, len(kept)), replace=False).tolist())
        # Every rank measures the whole sample: a sharded model needs all ranks in each forward pass, and none idles.
        matrix = gradient_matrix(pl_module.model, pl_module.data.training_batches(sample, self.batch_size))
        metric = GradientInterference(
            fact_index=sample,
            loss_weight=torch.tensor(prepared.loss_weight[sample]),
            num_trained_facts=len(kept),
            threshold=self.threshold,
        )
        metric.update(matrix)
        self.latest = metric
        scalars = metric.summary()
        self.records = [record for record in self.records if record.global_step != trainer.global_step]
        self.records.append(
            InterferenceRecord(
                epoch=epoch,
                global_step=trainer.global_step,
                conflict_rate=scalars["conflict_rate"],
                net_transfer_median=scalars["net_transfer_median"],
                share_net_transfer_below_minus_1=scalars["share_net_transfer_below_minus_1"],
                share_net_transfer_below_0=scalars["share_net_transfer_below_0"],
            )
        )
        for logger in trainer.loggers:
            logged = {f"interference/{name}": value for name, value in scalars.items() if name != "num_undefined_facts"}
            logger.log_metrics(logged, step=trainer.global_step)
