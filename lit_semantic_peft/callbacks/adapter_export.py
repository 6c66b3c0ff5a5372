"""The adapter as a standard PEFT folder: of the best epoch, and of the end."""

from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lit_semantic_peft.callbacks.checkpoint import refuse_renamed, require_logged
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import export_adapter
from lit_semantic_peft.reports import RunFolder
from lit_semantic_peft.training import SemanticPeftModule
from lit_semantic_peft.training.identity import FreshCallback


class AdapterExport(FreshCallback):
    """Writes `adapter/` when training ends and `adapter_best/` whenever a validation is better than all before.

    Args:
        monitor: Logged metric that decides which epoch is the best; no `adapter_best/` where None.
        mode: Whether the metric is to be as small (`min`) or as large (`max`) as possible.

    Raises:
        InputError: If `mode` is another one, or `monitor` is a metric's name of an earlier version.
    """

    def __init__(self, monitor: str | None = "val/nll", mode: Literal["min", "max"] = "min") -> None:
        if mode not in ("min", "max"):
            raise InputError(f"`mode` must be `min` or `max`, got {mode!r}")
        refuse_renamed(monitor)
        self.monitor = monitor
        self.mode = mode
        self._forget()

    @override
    def _forget(self) -> None:
        self.best: float | None = None

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exports the adapter if this epoch is the best so far.

        Raises:
            InputError: If `monitor` is not among the logged metrics; they are listed.
        """
        if trainer.sanity_checking or trainer.state.fn != "fit" or self.monitor is None:
            return
        require_logged(trainer, self.monitor)
        value = float(trainer.callback_metrics[self.monitor])
        if self.best is None or (value < self.best if self.mode == "min" else value > self.best):
            self.best = value
            about = f"Best epoch: {trainer.current_epoch} by {self.monitor} = {value:.6g}."
            self._export(trainer, pl_module, RunFolder(trainer.default_root_dir).paths.adapter_best, about)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exports the adapter at the end of training, also of a resumed run that had nothing left to train."""
        self._export(
            trainer,
            pl_module,
            RunFolder(trainer.default_root_dir).paths.adapter,
            f"After {trainer.global_step} optimizer steps.",
        )

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    @staticmethod
    def _export(trainer: Trainer, pl_module: LightningModule, folder: Path, about: str) -> None:
        assert isinstance(pl_module, SemanticPeftModule)
        if trainer.is_global_zero:
            source, table = pl_module.base_model.source, pl_module.subject_table
            export_adapter(pl_module.model, folder, source, about, table)
