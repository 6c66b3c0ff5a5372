"""Checkpoints in the run folder."""

from difflib import get_close_matches
from typing import Any, Literal

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import atomic_path
from lit_semantic_peft.reports import RunFolder

_RENAMED = {
    "val/recall": "val/efficacy_teacher_forced",
    "val/recall_dropped": "val/efficacy_teacher_forced_dropped",
}


def refuse_renamed(monitor: str | None) -> None:
    """Refuses the name that a metric had in an earlier version.

    Args:
        monitor: Name of the metric.

    Raises:
        InputError: With the new name.
    """
    if monitor in _RENAMED:
        raise InputError(f"`monitor` {monitor!r} is now {_RENAMED[monitor]!r}")


def require_logged(trainer: Trainer, monitor: str) -> None:
    """Refuses a metric that is not logged.

    Args:
        trainer: The trainer, after a validation or at the end of an epoch.
        monitor: Name of the metric.

    Raises:
        InputError: If it is not among the logged metrics; they are listed, and the name that is most like it is
            suggested.
    """
    if monitor not in trainer.callback_metrics:
        available = sorted(trainer.callback_metrics)
        nearest = get_close_matches(monitor, available, n=1)
        suggestion = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise InputError(f"`monitor` {monitor!r} was not logged; there are: {', '.join(available)}.{suggestion}")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file in the same folder and then renames it.

    Lightning writes it into the system's temporary folder. If that is another disk, moving the file is a copy, which a
    killed process leaves incomplete.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)


class AdapterCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, in `checkpoints/` of the run folder, with `last.ckpt` to resume from.

    A checkpoint holds the adapter, not the base model. It is written at the end of an epoch, after its validation and
    measurements, and with `every_n_steps` also within an epoch: always after a complete optimizer step.

    Args:
        monitor: Logged metric that decides which checkpoints stay; the newest where None.
        mode: Whether the metric is to be as small (`min`) or as large (`max`) as possible.
        save_top_k: How many checkpoints stay besides `last.ckpt`; -1 for all.
        every_n_epochs: Epochs between two checkpoints.
        every_n_steps: Optimizer steps between two versions of `last.ckpt` within an epoch; none where None.

    Raises:
        InputError: If an interval is below 1, or `monitor` is a metric's name of an earlier version; at the end of the
            first epoch with a validation (of any epoch, where it does not begin with `val/`), if `monitor` is not among
            the logged metrics; they are listed.
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
        refuse_renamed(monitor)
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
        self._waits_for_validation = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the run folder from the trainer, and makes it write checkpoints atomically."""
        self._waits_for_validation = False  # of an earlier training that was interrupted
        self.dirpath = str(RunFolder(trainer.default_root_dir).paths.checkpoints)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        super().setup(trainer, pl_module, stage)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A metric of the validation does not exist before the first one.
        if self.monitor is not None and (self._is_validated or not self.monitor.startswith("val/")):
            require_logged(trainer, self.monitor)
        super().on_train_epoch_end(trainer, pl_module)
        # Lightning updates `last.ckpt` only after an epoch that is among the best.
        is_due = (trainer.current_epoch + 1) % self._every_n_epochs == 0
        if is_due and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_validated = self._is_validated or not trainer.sanity_checking
        super().on_validation_end(trainer, pl_module)
        if self._waits_for_validation:
            self._waits_for_validation = False
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._steps_before = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes `last.ckpt` if this micro-batch completed an n-th optimizer step.

        The last step of an epoch is left to `on_train_epoch_end`, after its validation. Where a validation follows on
        another step, the checkpoint waits for it: a resumed run does not repeat it.
        """
        if self.every_n_steps is None or trainer.global_step == self._steps_before or trainer.is_last_batch:
            return
        if trainer.global_step % self.every_n_steps == 0:
            loop = trainer.fit_loop
            assert loop._data_fetcher is not None
            self._waits_for_validation = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
            if not self._waits_for_validation:
                self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
