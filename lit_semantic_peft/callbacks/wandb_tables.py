"""The run on a W&B dashboard: the fact table, the plots, the summary."""

import logging
from collections.abc import Sequence

from lightning.pytorch.loggers import Logger

from lit_semantic_peft.reports import RunFolder, Summary

logger = logging.getLogger(__name__)

_TEXT_COLUMNS = {"subject", "prompt", "target", "target_true", "answer_before", "answer_after"}


def log_run_to_wandb(
    loggers: Sequence[Logger], folder: RunFolder, summary: Summary, max_rows: int, with_text: bool
) -> None:
    """Logs `facts` (a table), `plots/*` (images) and the headline numbers to every W&B logger; nothing without one.

    Args:
        loggers: The trainer's loggers.
        folder: The run folder with the fact table and the plots.
        summary: The run's numbers.
        max_rows: Most rows of the table; kept facts and those hurt most come first.
        with_text: Whether the facts' texts and answers are logged too.
    """
    targets = [one for one in loggers if type(one).__name__ == "WandbLogger"]
    if not targets:
        return
    import wandb

    table = folder.read_facts()
    if not with_text:
        table = table.drop_columns([name for name in table.column_names if name in _TEXT_COLUMNS])
    table = table.sort_by([("kept", "descending"), ("net_transfer", "ascending")]).slice(0, max_rows)
    rows = [list(row.values()) for row in table.to_pylist()]
    headline = {
        "recall_generated": summary.recall.kept.generated.after,
        "recall_teacher_forced": summary.recall.kept.teacher_forced.after,
        "locality": summary.locality,
        "pushed_away": summary.pushed_away,
    }
    for target in targets:
        run = target.experiment  # type: ignore[attr-defined]
        run.log(
            {
                "facts": wandb.Table(columns=table.column_names, data=rows),
                **{f"plots/{path.stem}": wandb.Image(str(path)) for path in sorted(folder.plots.glob("*.png"))},
            }
        )
        run.summary.update({f"facts/{name}": value for name, value in headline.items() if value is not None})
