"""How far a run is: a bar in a terminal, and in a log, which a bar leaves silent, a line now and then."""

import logging
import math
import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from typing_extensions import override

from lit_semantic_peft.training import SemanticPeftModule

logger = logging.getLogger(__name__)


class StepBar(RichProgressBar):
    """Lightning's bar with epochs that count from 1, and the last step where `trainer.max_steps` ends the training."""

    @override
    def _get_train_description(self, current_epoch: int) -> str:
        description = _epoch(self.trainer, current_epoch)
        if self.trainer.max_steps >= 0:
            description += f", to step {self.trainer.max_steps}"
        return f"{description:{len(self.validation_description)}}"


class ProgressLog(Callback):
    """Logs, where standard output is no terminal, a line after each epoch and at least one every `every_seconds`.

    In a terminal a bar shows the same, so nothing is logged there.

    Args:
        every_seconds: Seconds between two lines within an epoch or an evaluation.
    """

    def __init__(self, every_seconds: float = 30.0) -> None:
        self.every_seconds = every_seconds
        self._epoch_began = self._began = self._said = 0.0
        self._first_step = 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = self._said = time.monotonic()
        self._first_step = trainer.global_step

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_began = time.monotonic()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_due(trainer):
            loss = trainer.callback_metrics.get("train/loss")
            said = "" if loss is None else f": loss {float(loss):.3f}"
            self._say(f"{_epoch(trainer, trainer.current_epoch)}, {self._steps(trainer, pl_module)}{said}")

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not _is_logged(trainer):
            return
        logged = trainer.callback_metrics
        shown = {"loss": "train/loss_epoch", "teacher-forced recall": "val/efficacy_teacher_forced"}
        numbers = [
            f"{name} {float(logged[key]):.0%}" if "recall" in name else f"{name} {float(logged[key]):.3f}"
            for name, key in shown.items()
            if key in logged
        ]
        seconds = f"{time.monotonic() - self._epoch_began:.0f} s"
        self._say(
            f"{_epoch(trainer, trainer.current_epoch)} ended, {self._steps(trainer, pl_module)}: "
            f"{', '.join([*numbers, seconds])}"
        )

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = self._said = time.monotonic()
        if _is_logged(trainer):
            self._say(f"Evaluation: {_in_all(trainer)} batches of questions")

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._is_due(trainer):
            done, total = batch_idx + 1, _in_all(trainer)
            self._say(f"Evaluation: batch {done} of {total}{self._left(done, total)}")

    def _is_due(self, trainer: Trainer) -> bool:
        return _is_logged(trainer) and time.monotonic() - self._said >= self.every_seconds

    def _say(self, line: str) -> None:
        logger.info("%s", line)
        self._said = time.monotonic()

    def _steps(self, trainer: Trainer, pl_module: LightningModule) -> str:
        assert isinstance(pl_module, SemanticPeftModule)
        step, total = trainer.global_step, pl_module.num_optimizer_steps
        left = self._left(step - self._first_step, total - self._first_step)
        return f"step {step} of {total:g}{left}" if math.isfinite(total) else f"step {step}"

    def _left(self, done: float, total: float) -> str:
        """The time that is left at the pace so far, that of validation included."""
        if not 0 < done < total or not math.isfinite(total):
            return ""
        seconds = (time.monotonic() - self._began) * (total - done) / done
        return f" (about {seconds / 60:.0f} min left)" if seconds >= 90 else f" (about {seconds:.0f} s left)"


def _epoch(trainer: Trainer, current_epoch: int) -> str:
    of = f" of {trainer.max_epochs}" if trainer.max_epochs not in (None, -1) and trainer.max_steps < 0 else ""
    return f"Epoch {current_epoch + 1}{of}"


def _in_all(trainer: Trainer) -> float:
    return sum(trainer.num_test_batches)


def _is_logged(trainer: Trainer) -> bool:
    """Whether this process writes for all, and nobody sees a bar."""
    return trainer.is_global_zero and (trainer.progress_bar_callback is None or not sys.stdout.isatty())
