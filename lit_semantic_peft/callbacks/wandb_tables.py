"""The run on a W&B dashboard: a table of facts per evaluation; the plots, the run's files."""

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger

from lit_semantic_peft.callbacks.wandb_logger import NonBlockingWandbLogger
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.reports import RunFolder, without_fact_text

TABLE_KEY = "facts/table"


SHORT_COLUMNS = {
    "fact_id": "fact_id",
    "kept": "kept",
    "prompt": "prompt",
    "target": "target",
    "answer_before": "before",
    "answer_after": "after",
    "efficacy_after": "right",
    "nll_after": "nll",
    "worst_aggressor": "worst_aggressor",
}
"""Columns of the short table by those of the fact table; without values they are left out."""


def check_table_settings(max_rows: int, every_n_epochs: int) -> None:
    """Refuses settings of the table that W&B could not follow.

    Args:
        max_rows: `wandb_rows` of `FactReport`.
        every_n_epochs: Its `wandb_table_every_n_epochs`.

    Raises:
        InputError: If one is out of its range.
    """
    # W&B silently cuts a table at 200,000 rows.
    for name, value, least, most in (
        ("wandb_rows", max_rows, 1, 200_000),
        ("wandb_table_every_n_epochs", every_n_epochs, 0, math.inf),
    ):
        if not least <= value <= most:
            raise InputError(f"`{name}` must be in [{least}, {most}], got {value}")


def log_fact_table(
    trainer: Trainer, table: pa.Table, max_rows: int, *, with_text: bool, all_columns: bool = False
) -> None:
    """Logs `facts/table` to every W&B logger.

    Args:
        trainer: The trainer.
        table: A row per fact, columns as in the fact table.
        max_rows: Most rows; kept facts and those hurt most come first.
        with_text: Whether the facts' texts and answers are logged too.
        all_columns: Whether to log every column instead of `SHORT_COLUMNS`.
    """
    texts = dict(zip(table["fact_id"].to_pylist(), _facts_as_text(table), strict=True)) if with_text else {}
    if not with_text:
        table = without_fact_text(table)
    shown = table.sort_by([("kept", "descending"), ("net_transfer", "ascending")]).slice(0, max_rows)
    if not all_columns:
        shown = _short(shown, texts)
    rows, step = [list(row.values()) for row in shown.to_pylist()], trainer.global_step

    def log(run: Any) -> None:
        import wandb

        # Each evaluation logs a new table that never changes, so W&B keeps one version per step. MUTABLE and
        # INCREMENTAL are for one table that grows, and the latter shows no more than its last hundred parts.
        value = wandb.Table(columns=shown.column_names, data=rows, log_mode="IMMUTABLE")
        run.log({TABLE_KEY: value, "trainer/global_step": step})

    _to_wandb(trainer, f"the fact table at step {step}", log)


def _facts_as_text(table: pa.Table) -> list[str]:
    return [f"{row['prompt']} {row['target']}" for row in table.select(["prompt", "target"]).to_pylist()]


def _short(table: pa.Table, texts: Mapping[str, str]) -> pa.Table:
    """The short columns; a fact that is named by its id gets its text where it may be shown."""
    present = [name for name in SHORT_COLUMNS if name in table.column_names and table[name].null_count < len(table)]
    chosen = table.select(present)
    if "worst_aggressor" in present:
        named = [texts.get(one, one) for one in chosen["worst_aggressor"].to_pylist()]
        chosen = chosen.set_column(present.index("worst_aggressor"), "worst_aggressor", pa.array(named, pa.string()))
    return chosen.rename_columns([SHORT_COLUMNS[name] for name in present])


def log_plots(trainer: Trainer, folder: RunFolder) -> None:
    """Logs the run's plots as images.

    Args:
        trainer: The trainer.
        folder: The run folder with the plots.
    """
    paths, step = folder.paths, trainer.global_step

    def log(run: Any) -> None:
        import wandb

        images = {f"{paths.plots.name}/{path.stem}": wandb.Image(str(path)) for path in paths.drawn_plots()}
        run.log({**images, "trainer/global_step": step})

    _to_wandb(trainer, "the plots", log)


def log_run_files(trainer: Trainer, folder: RunFolder, facts: pa.Table, *, with_text: bool) -> None:
    """Logs the run's files as an artifact of type `run-folder`, named after the W&B run.

    Args:
        trainer: The trainer.
        folder: The run folder. Its checkpoints, its logs and W&B's own files are left out.
        facts: The fact table.
        with_text: Whether to include files that hold the facts' texts or answers; if not, the fact table is logged
            without those columns, and the summary without the facts that resist and the most frequent answer.
    """

    def log(run: Any) -> None:
        import wandb

        artifact = wandb.Artifact(f"run-folder-{run.id}", type="run-folder", metadata={"with_fact_text": with_text})
        for path in folder.shared_files(with_fact_text=with_text):
            artifact.add_file(str(path), path.relative_to(folder.path).as_posix())
        if not with_text:
            with artifact.new_file(folder.paths.facts.name, "wb") as file:
                pq.write_table(without_fact_text(facts), file, compression="zstd")
            with artifact.new_file(folder.paths.summary.name) as file:
                json.dump(folder.summary.without_fact_text().to_json(), file, indent=2)
        run.log_artifact(artifact)

    _to_wandb(trainer, "the run's files", log)


def _to_wandb(trainer: Trainer, what: str, log: Callable[[Any], None]) -> None:
    """Calls `log` with the run of each W&B logger; `wandb` may be imported there."""
    for target in trainer.loggers:
        if isinstance(target, NonBlockingWandbLogger):
            target.submit(what, partial(log, target.experiment))
        elif isinstance(target, WandbLogger):
            log(target.experiment)
