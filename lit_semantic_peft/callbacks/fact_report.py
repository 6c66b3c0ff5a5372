"""What a run leaves behind: the fact table, the summary, the report."""

import dataclasses
import json
import logging
import math
import resource
import shlex
import sys
from collections import defaultdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_semantic_peft.callbacks.interference_monitor import InterferenceMonitor
from lit_semantic_peft.callbacks.terminal import show
from lit_semantic_peft.callbacks.wandb_tables import log_fact_table, log_run_files, log_run_to_wandb
from lit_semantic_peft.data import PreparedFacts, agreed
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation import Comparison, Scores
from lit_semantic_peft.files import write_json, write_text
from lit_semantic_peft.models import peft_type_name
from lit_semantic_peft.reports import (
    EpochRecord,
    Estimate,
    RetentionRecord,
    RunFolder,
    Seconds,
    Summary,
    build_report,
    fact_table,
    summarize,
    terminal_summary,
    write_fact_table,
    write_probe_table,
)
from lit_semantic_peft.stopwatch import Stopwatch
from lit_semantic_peft.training import SemanticPeftModule
from lit_semantic_peft.training.identity import FreshCallback

logger = logging.getLogger(__name__)

_PACKAGES = ("lit-semantic-peft", "torch", "lightning", "transformers", "peft", "torchmetrics", "datasets", "wandb")


class FactReport(FreshCallback):
    """Writes the run folder: `dropped.jsonl` and `manifest.json` when training starts, tables and report at the end.

    After `fit` the table holds distances, fates, weights and the course of learning; after `test` also answers,
    likelihoods and recall before and after. The command line runs both.

    Logged metrics, once when training starts:

    - `data/facts_kept`, `data/facts_dropped`: facts that are trained, and facts that a filter dropped.

    Args:
        show_summary: Whether the terminal shows the summary at the end.
        log_fact_text: Whether W&B gets the facts' texts and answers; the run folder has them in any case. Without,
            no file that holds them goes into the artifact either.
        wandb_rows: Most rows of a W&B table of facts.
        wandb_table_every_n_epochs: Epochs between two W&B tables of facts during training, besides the one at the
            end; 0 for only that.
        wandb_artifact: Whether W&B gets the run's files (adapter, tables, plots, report) at the end.
    """

    def __init__(
        self,
        show_summary: bool = True,
        log_fact_text: bool = True,
        wandb_rows: int = 2000,
        wandb_table_every_n_epochs: int = 0,
        wandb_artifact: bool = True,
    ) -> None:
        # W&B cuts a table at 200,000 rows without a word to the script.
        for name, value, least, most in (
            ("wandb_rows", wandb_rows, 1, 200_000),
            ("wandb_table_every_n_epochs", wandb_table_every_n_epochs, 0, math.inf),
        ):
            if not least <= value <= most:
                raise InputError(f"`{name}` must be in [{least}, {most}], got {value}")
        self.show_summary = show_summary
        self.log_fact_text = log_fact_text
        self.wandb_rows = wandb_rows
        self.wandb_table_every_n_epochs = wandb_table_every_n_epochs
        self.wandb_artifact = wandb_artifact
        self.epochs: list[EpochRecord] = []
        self._epoch_columns: dict[str, list[Any]] = {}
        self._is_validated = False  # in this epoch
        self._stopwatch = Stopwatch()

    def _forget(self) -> None:
        if self.epochs:  # else the time is that of preparing this training
            self._stopwatch = Stopwatch()
        self.epochs, self._epoch_columns, self._is_validated = [], {}, False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes over the time that the data module took, and starts the clock of the part that begins.

        Args:
            trainer: The trainer.
            pl_module: The module.
            stage: `fit`, `validate`, `test` or `predict`.

        Raises:
            InputError: Before `test`, if the run folder holds the results of other facts, which would be overwritten.
        """
        if stage == "predict":
            return
        assert isinstance(pl_module, SemanticPeftModule)
        super().setup(trainer, pl_module, stage)
        seconds, pl_module.data.stopwatch = pl_module.data.stopwatch.seconds, Stopwatch()
        if stage == "test":
            agreed(lambda: _refuse_other_facts(RunFolder(trainer.default_root_dir), pl_module.data.prepared))
            # Reading the facts again is part of it where the training was another process.
            self._stopwatch.add({"evaluation": sum(seconds.values())})
            self._stopwatch.start("evaluation")
        else:
            self._stopwatch.add(seconds)
            self._stopwatch.start("setup")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes which facts were dropped and why, and which facts and base model the folder's results are of.

        Args:
            trainer: The trainer.
            pl_module: The `SemanticPeftModule`.
        """
        self._stopwatch.start("training")
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, SemanticPeftModule)
        folder, prepared = RunFolder(trainer.default_root_dir), pl_module.data.prepared
        dropped = [
            json.dumps({**fact.to_json(), "drop_reason": reason}, ensure_ascii=False)
            for fact, reason in zip(prepared.facts, prepared.reason, strict=True)
            if reason is not None and fact.split == "inject"
        ]
        num_kept = len(prepared.kept_index)
        counts = {"data/facts_kept": float(num_kept), "data/facts_dropped": float(len(dropped))}
        for one in trainer.loggers:
            one.log_metrics(counts, step=trainer.global_step)
        write_text(folder.dropped, "".join(f"{line}\n" for line in dropped))
        write_json(
            folder.manifest,
            {
                "facts_key": prepared.key,
                "base_model": pl_module.base_model.source.public_name,
                "base_fingerprint": pl_module.base_model.source.fingerprint,
                "num_facts": len(prepared.facts),
                "num_kept": num_kept,
            },
        )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that the epoch has a validation; keeps each fact's likelihood for a W&B table before it is reset.

        Args:
            trainer: The trainer.
            pl_module: The `SemanticPeftModule`.
        """
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._is_validated = True
        if self._is_table_due(trainer):
            assert isinstance(pl_module, SemanticPeftModule)
            self._epoch_columns = {"nll_after": pl_module.val_nll.compute().tolist()}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the epoch's numbers.

        Args:
            trainer: The trainer.
            pl_module: The module.
        """
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
                recall=logged.get("val/recall"),
            )
        )
        if self._is_table_due(trainer):
            assert isinstance(pl_module, SemanticPeftModule)
            # metrics: all ranks take part
            columns = _fact_columns(pl_module.data.prepared, pl_module, _monitor(trainer)) | self._epoch_columns
            if trainer.is_global_zero:
                self._log_fact_table(trainer, fact_table(columns))
        self._epoch_columns = {}
        self._is_validated = False

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what is known without asking questions, also of a resumed run that had nothing left to train.

        Args:
            trainer: The trainer.
            pl_module: The `SemanticPeftModule`.
        """
        self._stopwatch.start("evaluation")
        assert isinstance(pl_module, SemanticPeftModule)
        prepared = pl_module.data.prepared
        if prepared.deferred_from_epoch is not None and trainer.current_epoch <= prepared.deferred_from_epoch:
            logger.warning(
                "Training ended after %d epochs, so what the filters dropped never came back: `trained_from_epoch` and "
                "`loss_weight` of these facts in the table say what `data.selection.deferred_from_epoch: %d` had "
                "planned.",
                trainer.current_epoch, prepared.deferred_from_epoch,
            )  # fmt: skip
        self._write(trainer, pl_module)
        self._stopwatch.stop()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes everything, logs it to W&B where that is in use, and shows the summary.

        Args:
            trainer: The trainer.
            pl_module: The `SemanticPeftModule`.
        """
        summary = self._write(trainer, pl_module)
        self._stopwatch.stop()
        if summary is not None:
            folder = RunFolder(trainer.default_root_dir)
            self._log_fact_table(trainer, folder.read_facts())
            log_run_to_wandb(trainer.loggers, folder, summary, trainer.global_step)
            if self.wandb_artifact:
                log_run_files(trainer.loggers, folder, with_text=self.log_fact_text)
            if self.show_summary:
                show(trainer, pl_module, terminal_summary(summary), f"Report: {folder.report}")

    def state_dict(self) -> dict[str, Any]:
        """The epochs' numbers and the seconds so far, for the checkpoint."""
        return {"epochs": [dataclasses.asdict(epoch) for epoch in self.epochs], "seconds": self._stopwatch.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the epochs' numbers from a checkpoint.

        Args:
            state_dict: From `state_dict`.
        """
        self.epochs = [EpochRecord(**epoch) for epoch in state_dict["epochs"]]
        self._stopwatch.add(state_dict["seconds"])

    def _is_table_due(self, trainer: Trainer) -> bool:
        every = self.wandb_table_every_n_epochs
        return bool(every) and (trainer.current_epoch + 1) % every == 0

    def _log_fact_table(self, trainer: Trainer, table: pa.Table) -> None:
        log_fact_table(
            trainer.loggers,
            table,
            self.wandb_rows,
            with_text=self.log_fact_text,
            global_step=trainer.global_step,
        )

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> Summary | None:
        assert isinstance(pl_module, SemanticPeftModule)
        prepared = pl_module.data.prepared
        columns = _fact_columns(prepared, pl_module, _monitor(trainer))  # metrics: all ranks take part
        if not trainer.is_global_zero:
            return None
        folder = RunFolder(trainer.default_root_dir)
        previous = _previous(folder, columns["fact_id"])
        # `test` on a finished run measures answers but not the course of learning: what it does not measure stays.
        for name, values in (previous or {}).items():
            if name not in columns or all(value is None for value in columns[name]):
                columns[name] = values
        write_fact_table(folder.facts, columns)
        probes = None
        if pl_module.comparisons:
            write_probe_table(folder.probes, _probe_columns(pl_module.comparisons, prepared))
            probes = folder.read_probes()
        about = self._about_run(trainer, pl_module, folder)
        if previous is not None and folder.summary.is_file():
            earlier = folder.read_summary()
            about = {name: value or getattr(earlier, name) for name, value in about.items()}
            if earlier.seconds is not None:
                about["seconds"] = Seconds(**{**earlier.seconds.to_json(), **self._stopwatch.seconds})
        summary = summarize(folder.read_facts(), probes, **about)
        folder.write_summary(summary)
        build_report(folder)
        return summary

    def _about_run(self, trainer: Trainer, module: SemanticPeftModule, folder: RunFolder) -> dict[str, Any]:
        monitor = _monitor(trainer)
        return {
            "name": folder.path.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join([_program(), *sys.argv[1:]]),
            "base_model": module.base_model.source.public_name,
            "base_model_note": module.base_model.source.note or None,
            "peft_type": peft_type_name(module.model),
            "trainable_parameters": sum(p.numel() for p in module.model.parameters() if p.requires_grad),
            "distance_name": module.data.distances[0].name,
            "epochs": tuple(self.epochs),
            "interference": tuple(monitor.records) if monitor else (),
            "retention": _retention(module.scores) if module.scores else None,
            "seconds": Seconds(**self._stopwatch.seconds),
            "peak_memory_gb": _peak_memory_gb(),
            "versions": _versions(),
            "config": yaml.safe_load(folder.config.read_text(encoding="utf-8")) if folder.config.is_file() else {},
        }


def _monitor(trainer: Trainer) -> InterferenceMonitor | None:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    monitors = [callback for callback in callbacks if isinstance(callback, InterferenceMonitor)]
    return monitors[0] if monitors else None


def _fact_columns(
    prepared: PreparedFacts, module: SemanticPeftModule, monitor: InterferenceMonitor | None
) -> dict[str, list[Any]]:
    columns = prepared.columns()
    if hasattr(module, "dynamics"):
        columns |= _dynamics_columns(module)
    if monitor is not None and monitor.latest is not None:
        columns |= monitor.latest.columns(columns["fact_id"])
    if module.comparisons:
        columns |= _answer_columns(module, len(prepared.facts))
        if module.trainer.precision != "32-true":  # both sides rounded alike; the filters saw distances in float32
            name = module.data.distances[0].name
            for row in module.comparisons:
                if row.question.kind == "fact":
                    columns["distance"][row.question.fact_index] = row.before.distances[name]
    return columns


def _dynamics_columns(module: SemanticPeftModule) -> dict[str, list[Any]]:
    course = {name: values.tolist() for name, values in module.dynamics.compute().items()}
    measured = [count > 0 for count in course["num_measured_epochs"]]

    def where_measured(values: list[Any]) -> list[Any]:
        return [value if known else None for value, known in zip(values, measured, strict=True)]

    return {
        "first_learned_epoch": [epoch if epoch >= 0 else None for epoch in course["first_learned"]],
        "forgetting_events": where_measured(course["forgetting_events"]),
        "learned_at_end": where_measured(course["is_recalled"]),
    }


def _answer_columns(module: SemanticPeftModule, size: int) -> dict[str, list[Any]]:
    distance_name = module.data.distances[0].name
    columns: dict[str, list[Any]] = defaultdict(lambda: [None] * size)
    for row in module.comparisons:
        index, before, after = row.question.fact_index, row.before, row.after
        if row.question.kind != "fact":
            continue
        measured = {
            "nll_before": before.nll,
            "nll_after": after.nll,
            "nll_delta": after.nll - before.nll,
            "efficacy_teacher_forced_before": before.is_recalled,
            "efficacy_teacher_forced_after": after.is_recalled,
            "efficacy_before": before.is_correct,
            "efficacy_after": after.is_correct,
            "answer_before": before.text,
            "answer_after": after.text,
            "distance_after": after.distances[distance_name],
            "pushed_away": bool(module.is_pushed_away[index]),
        }
        for name, value in measured.items():
            columns[name][index] = value
    assert module.scores is not None
    # Of a fact's own prompt the table says yes or no, as set above.
    return module.scores.columns() | dict(columns)


def _retention(scores: Scores) -> RetentionRecord | None:
    measured = {name: value for name, value in scores.retention.items() if value == value}
    if not measured:
        return None
    return RetentionRecord(
        nll_before=measured.get("nll_before"),
        nll_after=measured.get("nll_after"),
        nll_delta=Estimate.of(scores.text_nll_delta),
        known=Estimate.of(scores.is_still_known),
    )


def _probe_columns(comparisons: list[Comparison], prepared: PreparedFacts) -> dict[str, list[Any]]:
    probes = [row for row in comparisons if row.question.max_new_tokens and row.question.kind not in ("fact", "known")]
    return {
        "fact_id": [prepared.facts[row.question.fact_index].id for row in probes],
        "kind": [row.question.kind for row in probes],
        "prompt": [row.question.prompt for row in probes],
        "target": [row.question.target for row in probes],
        "answer_before": [row.before.text for row in probes],
        "answer_after": [row.after.text for row in probes],
        "unchanged": [row.is_unchanged for row in probes],
        "correct_before": [row.before.is_correct for row in probes],
        "correct_after": [row.after.is_correct for row in probes],
        "turn": [row.question.turn for row in probes],
        "nll_before": [row.before.nll for row in probes],
        "nll_after": [row.after.nll for row in probes],
    }


def _refuse_other_facts(folder: RunFolder, prepared: PreparedFacts) -> None:
    if not folder.facts.is_file():
        return
    if folder.read_facts().column("fact_id").to_pylist() != [fact.id for fact in prepared.facts]:
        raise InputError(
            f"The run folder {folder.path} holds the results of other facts than those to be tested; they would be "
            "overwritten. Choose another folder by `--trainer.default_root_dir runs/NAME`, and name the checkpoint by "
            f"its file, `--ckpt_path {folder.checkpoints / 'last.ckpt'}`."
        )


def _previous(folder: RunFolder, fact_ids: list[str]) -> dict[str, list[Any]] | None:
    """The columns of the run folder's fact table, if it is of the same facts."""
    if not folder.facts.is_file():
        return None
    table: pa.Table = folder.read_facts()
    if table.column("fact_id").to_pylist() != fact_ids:
        return None
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _program() -> str:
    name = Path(sys.argv[0]).name
    return "lit-semantic-peft" if name == "__main__.py" else name


def _peak_memory_gb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def _versions() -> dict[str, str]:
    versions = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
