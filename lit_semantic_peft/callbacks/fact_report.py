"""What a run leaves behind: the fact table, the summary, the report."""

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lit_semantic_peft.callbacks.run_results import fact_columns, refuse_other_results, write_results, write_selection
from lit_semantic_peft.callbacks.terminal import next_steps, show
from lit_semantic_peft.callbacks.wandb_tables import check_table_settings, log_fact_table, log_plots, log_run_files
from lit_semantic_peft.data import agreed
from lit_semantic_peft.reports import EpochRecord, RunContents, RunFolder, fact_table, terminal_summary, try_report
from lit_semantic_peft.stopwatch import Stopwatch
from lit_semantic_peft.training import SemanticPeftModule
from lit_semantic_peft.training.identity import FreshCallback

logger = logging.getLogger(__name__)


class FactReport(FreshCallback):
    """Writes the run folder: dropped facts and manifest when training starts, tables, summary and report at the end.

    After `fit` the table holds distances, statuses, weights and the history of learning; after `test` also answers,
    likelihoods and recall before and after. The command line runs both and makes the report once, after `test`.

    Logged metrics, once when training starts:

    - `data/facts_kept`, `data/facts_dropped`: facts that are trained, and facts that a filter dropped.

    Args:
        show_summary: Whether the terminal shows the summary at the end.
        log_fact_text: Whether W&B gets the facts' texts and answers; the run folder has them in any case. Without,
            no file that holds them goes into the artifact either.
        wandb_rows: Most rows of a W&B table of facts.
        wandb_all_columns: Whether that table has every column of `facts.parquet`, instead of prompt, target, answers
            before and after, whether the answer is right, and the fact that hurts most.
        wandb_table_every_n_epochs: Epochs between two W&B tables of facts during training, besides the one at the
            end; 0 for only that.
        wandb_artifact: Whether W&B gets the run's files (adapter, tables, plots, report) at the end.

    Attributes:
        clock: Gives the time in seconds, for the seconds of each part of the run.
        is_test_next: Whether a `test` follows the `fit`, so that the report is left to it.
    """

    clock: Callable[[], float] = time.monotonic

    def __init__(
        self,
        show_summary: bool = True,
        log_fact_text: bool = True,
        wandb_rows: int = 2000,
        wandb_table_every_n_epochs: int = 0,
        wandb_artifact: bool = True,
        wandb_all_columns: bool = False,
    ) -> None:
        check_table_settings(wandb_rows, wandb_table_every_n_epochs)
        self.show_summary = show_summary
        self.log_fact_text = log_fact_text
        self.wandb_rows = wandb_rows
        self.wandb_all_columns = wandb_all_columns
        self.wandb_table_every_n_epochs = wandb_table_every_n_epochs
        self.wandb_artifact = wandb_artifact
        self.is_test_next = False
        self.epochs: list[EpochRecord] = []
        self._epoch_columns: dict[str, list[Any]] = {}
        self._is_validated = False  # in this epoch
        self._stopwatch = Stopwatch(self.clock)

    @override
    def _forget(self) -> None:
        if self.epochs:  # else the time is that of preparing this training
            self._stopwatch = Stopwatch(self.clock)
        self.epochs, self._epoch_columns, self._is_validated = [], {}, False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts the stopwatch, with the time that the data module took.

        Raises:
            InputError: Before `test`, if the run folder holds the results of other facts, which would be overwritten.
        """
        if stage == "predict":
            return
        assert isinstance(pl_module, SemanticPeftModule)
        super().setup(trainer, pl_module, stage)
        seconds, pl_module.data.stopwatch = pl_module.data.stopwatch.seconds, pl_module.data.stopwatch.fresh()
        if stage == "test":
            agreed(lambda: refuse_other_results(RunFolder(trainer.default_root_dir), pl_module.data.prepared))
            # Reading the facts again is part of it where the training was another process.
            self._stopwatch.add({"evaluation": sum(seconds.values())})
            self._stopwatch.start("evaluation")
        else:
            self._stopwatch.add(seconds)
            self._stopwatch.start("setup")

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stopwatch.start("training")
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, SemanticPeftModule)
        num_kept, num_dropped = write_selection(RunFolder(trainer.default_root_dir), pl_module)
        counts = {"data/facts_kept": float(num_kept), "data/facts_dropped": float(num_dropped)}
        for one in trainer.loggers:
            one.log_metrics(counts, step=trainer.global_step)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps each fact's likelihood for a W&B table before it is reset."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._is_validated = True
        if self._is_table_due(trainer):
            assert isinstance(pl_module, SemanticPeftModule)
            self._epoch_columns = {"nll_after": pl_module.val_nll.compute().tolist()}

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logged = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if self._is_validated or not name.startswith("val/")  # else of an earlier epoch
        }
        self.epochs.append(
            EpochRecord(
                epoch=trainer.current_epoch,
                global_step=trainer.global_step,
                loss=logged.get("train/loss_epoch"),
                val_nll=logged.get("val/nll"),
                efficacy_teacher_forced=logged.get("val/efficacy_teacher_forced"),
                stopping_efficacy_teacher_forced=logged.get("val/stopping_efficacy_teacher_forced"),
            )
        )
        if self._is_table_due(trainer):
            assert isinstance(pl_module, SemanticPeftModule)
            columns = fact_columns(trainer, pl_module) | self._epoch_columns  # metrics: all ranks take part
            if trainer.is_global_zero:
                self._log_table(trainer, fact_table(columns))
        self._epoch_columns, self._is_validated = {}, False

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what is known without asking questions, also of a resumed run that had nothing left to train."""
        self._stopwatch.start("evaluation")
        assert isinstance(pl_module, SemanticPeftModule)
        first_late = pl_module.data.prepared.weights.deferred_from_epoch
        if first_late is not None and trainer.current_epoch <= first_late:
            logger.warning(
                "Training ended after %d epochs, so what the filters dropped never came back: `trained_from_epoch` and "
                "`loss_weight` of these facts in the table show what `data.selection.deferred_from_epoch: %d` had "
                "planned.",
                trainer.current_epoch, first_late,
            )  # fmt: skip
        run = self._write(trainer, pl_module)
        if run is not None and not self.is_test_next:
            try_report(trainer.default_root_dir, run)
        self._stopwatch.stop()

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes everything, logs it to W&B where that is in use, and shows the summary."""
        run = self._write(trainer, pl_module)
        if run is not None:
            report = try_report(trainer.default_root_dir, run)
        self._stopwatch.stop()
        if run is not None:
            folder = RunFolder(trainer.default_root_dir)
            self._log_table(trainer, run.facts)
            log_plots(trainer, folder)
            if self.wandb_artifact:
                log_run_files(trainer, folder, run.facts, with_text=self.log_fact_text)
            if self.show_summary:
                show(trainer, pl_module, terminal_summary(run.summary), *next_steps(folder), report)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"epochs": [dataclasses.asdict(epoch) for epoch in self.epochs], "seconds": self._stopwatch.seconds}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = [EpochRecord(**epoch) for epoch in state_dict["epochs"]]
        self._stopwatch.add(state_dict["seconds"])

    def _is_table_due(self, trainer: Trainer) -> bool:
        every = self.wandb_table_every_n_epochs
        return bool(every) and (trainer.current_epoch + 1) % every == 0

    def _log_table(self, trainer: Trainer, facts: pa.Table) -> None:
        shown = {"with_text": self.log_fact_text, "all_columns": self.wandb_all_columns}
        log_fact_table(trainer, facts, self.wandb_rows, **shown)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> RunContents | None:
        assert isinstance(pl_module, SemanticPeftModule)
        return write_results(trainer, pl_module, self.epochs, self._stopwatch)
