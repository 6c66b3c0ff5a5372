"""The run on a W&B dashboard: a table of facts per evaluation, the plots, the summary, the run's files."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch.loggers import Logger, WandbLogger

from lit_semantic_peft.callbacks.wandb_logger import NonBlockingWandbLogger
from lit_semantic_peft.reports import RunFolder

TABLE_KEY = "facts/table"

_TEXT_COLUMNS = {"subject", "prompt", "target", "target_true", "answer_before", "answer_after"}
_FILES = (
    "config.yaml",
    "manifest.json",
    "summary.json",
    "interference.safetensors",
    "interference_by_group.json",
    "alone_versus_together.json",
)
_FILES_WITH_TEXT = ("report.html", "probes.parquet", "dropped.jsonl")
_FOLDERS = ("adapter", "adapter_best", "plots")


def log_fact_table(
    loggers: Sequence[Logger], table: pa.Table, max_rows: int, *, with_text: bool, global_step: int
) -> None:
    """Logs `facts/table` to every W&B logger.

    Args:
        loggers: The trainer's loggers.
        table: A row per fact, columns as in `facts.parquet`.
        max_rows: Most rows; kept facts and those hurt most come first.
        with_text: Whether the facts' texts and answers are logged too.
        global_step: Optimizer steps taken before.
    """
    if not with_text:
        table = _without_text(table)
    shown = table.sort_by([("kept", "descending"), ("net_transfer", "ascending")]).slice(0, max_rows)
    rows = [list(row.values()) for row in shown.to_pylist()]

    def log(run: Any) -> None:
        import wandb

        # Each evaluation logs a new table that never changes, so W&B keeps one version per step. MUTABLE and
        # INCREMENTAL are for one table that grows, and the latter shows no more than its last hundred parts.
        value = wandb.Table(columns=shown.column_names, data=rows, log_mode="IMMUTABLE")
        run.log({TABLE_KEY: value, "trainer/global_step": global_step})

    _to_wandb(loggers, f"the fact table at step {global_step}", log)


def log_plots(loggers: Sequence[Logger], folder: RunFolder, global_step: int) -> None:
    """Logs `plots/*` as images.

    Args:
        loggers: The trainer's loggers.
        folder: The run folder with the plots.
        global_step: Optimizer steps taken before.
    """

    def log(run: Any) -> None:
        import wandb

        images = {f"plots/{path.stem}": wandb.Image(str(path)) for path in sorted(folder.plots.glob("*.png"))}
        run.log({**images, "trainer/global_step": global_step})

    _to_wandb(loggers, "the plots", log)


def log_run_files(loggers: Sequence[Logger], folder: RunFolder, *, with_text: bool) -> None:
    """Logs the run's files as an artifact of type `run-folder`, named after the W&B run.

    Args:
        loggers: The trainer's loggers.
        folder: The run folder. Its checkpoints, its logs and W&B's own files stay.
        with_text: Whether files that hold the facts' texts or answers go along; without, `facts.parquet` goes without
            those columns.
    """

    def log(run: Any) -> None:
        import wandb

        artifact = wandb.Artifact(f"run-folder-{run.id}", type="run-folder", metadata={"with_fact_text": with_text})
        for path in _files(folder, with_text):
            artifact.add_file(str(path), path.relative_to(folder.path).as_posix())
        if not with_text:
            with artifact.new_file(folder.facts.name, "wb") as file:
                pq.write_table(_without_text(folder.read_facts()), file, compression="zstd")
        run.log_artifact(artifact)

    _to_wandb(loggers, "the run's files", log)


def _files(folder: RunFolder, with_text: bool) -> list[Path]:
    names = [*_FILES, *((folder.facts.name, *_FILES_WITH_TEXT) if with_text else ())]
    files = [folder.path / name for name in names]
    files += [path for name in _FOLDERS for path in sorted((folder.path / name).glob("*"))]
    return [path for path in files if path.is_file()]


def _without_text(table: pa.Table) -> pa.Table:
    return table.drop_columns([name for name in table.column_names if name in _TEXT_COLUMNS])


def _to_wandb(loggers: Sequence[Logger], what: str, log: Callable[[Any], None]) -> None:
    """Calls `log` with the run of each W&B logger; `wandb` may be imported there."""
    for target in loggers:
        if isinstance(target, NonBlockingWandbLogger):
            target.submit(what, partial(log, target.experiment))
        elif isinstance(target, WandbLogger):
            log(target.experiment)
