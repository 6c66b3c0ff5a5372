"""Checkpoints in the run folder."""

from typing import Any, Literal

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import atomic_path
from lit_semantic_peft.reports import RunFolder


def require_logged(trainer: Trainer, monitor: str) -> None:
    """Refuses to watch what nobody logs.

    Args:
        trainer: The trainer, after a validation or at the end of an epoch.
        monitor: Name of the metric.

    Raises:
        InputError: If it is not among the logged metrics; they are listed.
    """
    if monitor not in trainer.callback_metrics:
        available = ", ".join(sorted(trainer.callback_metrics))
        raise InputError(f"`monitor` {monitor!r} was not logged; there are: {available}")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and then renames it.

    Lightning's own writes into the system's folder for temporary files; where that is another disk, moving it is a
    copy, which a killed process leaves half done.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint, whole or not at all.

        Args:
            checkpoint: What `torch.save` takes.
            path: The file.
            storage_options: Ignored; files are local.
        """
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)


class AdapterCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, in `checkpoints/` of the run folder, with `last.ckpt` to resume from.

    A checkpoint holds the adapter, not the base model. It is written when an epoch has ended, after its validation and
    measurements, and with `every_n_steps` also between: always after a whole optimizer step, never between the
    micro-batches of one.

    Args:
        monitor: Logged metric that decides which checkpoints stay; the newest where None.
        mode: Whether the metric is to be as small (`min`) or as large (`max`) as possible.
        save_top_k: How many checkpoints stay besides `last.ckpt`; -1 for all.
        every_n_epochs: Epochs between two checkpoints.
        every_n_steps: Optimizer steps between two versions of `last.ckpt` within an epoch; none where None.

    Raises:
        InputError: If an interval is below 1; at the end of the first epoch with a validation (of any epoch, where it
            does not begin with `val/`), if `monitor` is not among the logged metrics; they are listed.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        save_top_k: int = 1,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
    ) -> None:
        for name, value in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if value is not None and value < 1:
                raise InputError(f"`{name}` must be at least 1, got {value}")
        super().__init__(
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            every_n_epochs=every_n_epochs,
            save_on_train_epoch_end=True,  # after the validation and what other callbacks measure
            save_last=True,
            filename="epoch{epoch:03d}",
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self.every_n_steps = every_n_steps
        self._steps_before = 0
        self._is_validated = False  # in this process

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the run folder from the trainer, and has checkpoints written atomically.

        Args:
            trainer: The trainer.
            pl_module: The module.
            stage: `fit`, `validate`, `test` or `predict`.
        """
        self.dirpath = str(RunFolder(trainer.default_root_dir).paths.checkpoints)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        super().setup(trainer, pl_module, stage)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the checkpoint of the epoch.

        Args:
            trainer: The trainer.
            pl_module: The module.
        """
        # Before the first validation there is nothing to go by.
        if self.monitor is not None and (self._is_validated or not self.monitor.startswith("val/")):
            require_logged(trainer, self.monitor)
        super().on_train_epoch_end(trainer, pl_module)
        # Lightning leaves `last.ckpt` at the last epoch that was among the best.
        is_due = (trainer.current_epoch + 1) % self._every_n_epochs == 0
        if is_due and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that there are the metrics of a validation from now on.

        Args:
            trainer: The trainer.
            pl_module: The module.
        """
        self._is_validated = self._is_validated or not trainer.sanity_checking
        super().on_validation_end(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remembers how many optimizer steps there were.

        Args:
            trainer: The trainer.
            pl_module: The module.
            batch: The micro-batch.
            batch_idx: Its number.
        """
        self._steps_before = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes `last.ckpt` if this micro-batch completed an n-th optimizer step.

        The epoch's last step is left to the end of the epoch: what follows from it, the validation first, belongs to
        the same checkpoint.

        Args:
            trainer: The trainer.
            pl_module: The module.
            outputs: What `training_step` returned.
            batch: The micro-batch.
            batch_idx: Its number.
        """
        if self.every_n_steps is None or trainer.global_step == self._steps_before or trainer.is_last_batch:
            return
        if trainer.global_step % self.every_n_steps == 0:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
