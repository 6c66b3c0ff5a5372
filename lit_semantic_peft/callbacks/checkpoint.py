"""Checkpoints in the run folder."""

from pathlib import Path
from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class AdapterCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, in `checkpoints/` of the run folder, with `last.ckpt` to resume from.

    A checkpoint holds the adapter, not the base model.

    Args:
        monitor: Logged metric that decides which checkpoints stay; the newest where None.
        mode: Whether the metric is to be as small (`min`) or as large (`max`) as possible.
        save_top_k: How many checkpoints stay besides `last.ckpt`; -1 for all.
        every_n_epochs: Epochs between two checkpoints.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        save_top_k: int = 1,
        every_n_epochs: int = 1,
    ) -> None:
        super().__init__(
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            every_n_epochs=every_n_epochs,
            save_last=True,
            filename="epoch{epoch:03d}",
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the run folder from the trainer.

        Args:
            trainer: The trainer.
            pl_module: The module.
            stage: `fit`, `validate`, `test` or `predict`.
        """
        self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        super().setup(trainer, pl_module, stage)
