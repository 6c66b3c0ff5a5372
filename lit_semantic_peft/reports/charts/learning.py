"""What training did to recall and loss."""

from lit_semantic_peft.evaluation.scores import label_of
from lit_semantic_peft.reports.charts.kinds import (
    BeforeAfterChart,
    BeforeAfterRow,
    Color,
    LineChart,
    Series,
    measured_series,
)
from lit_semantic_peft.reports.records import Estimate, Sides
from lit_semantic_peft.reports.run_folder import RunContents

_SHOWN = ("efficacy", "efficacy_teacher_forced")


def recall_before_after(run: RunContents) -> BeforeAfterChart:
    """Efficacy of the kept and of the dropped facts.

    Args:
        run: The run.
    """

    def row(status: str, color: Color, score: str) -> BeforeAfterRow:
        sides: Sides = getattr(run.summary.score(score), status)
        return BeforeAfterRow(label_of(score), f"{status} facts", _mean(sides.before), _mean(sides.after), color)

    rows = [row("kept", "blue", score) for score in _SHOWN]
    if run.summary.num_dropped:
        rows += [row("dropped", "orange", score) for score in _SHOWN]
    return BeforeAfterChart(
        title="Recall before (○) and after (●) training",
        note="Share of the facts that are exactly right, under the base model and after training.",
        x_label="share of facts",
        rows=tuple(rows),
    )


def recall_by_epoch(run: RunContents) -> LineChart:
    """Teacher-forced recall at the end of each epoch.

    Args:
        run: The run.
    """
    recall = tuple(record.efficacy_teacher_forced for record in run.summary.epochs)
    return LineChart(
        title="Recall of the kept facts",
        note="Teacher-forced, at the end of each epoch.",
        x=_epochs(run),
        x_label="epoch",
        y_label=label_of("efficacy_teacher_forced"),
        series=(Series("recall", recall, "blue"),),
        is_share=True,
        has_legend=False,
    )


def loss_by_epoch(run: RunContents) -> LineChart:
    """Training loss of each epoch, and the kept facts' likelihood loss at its end.

    Args:
        run: The run.
    """
    training = tuple(record.loss for record in run.summary.epochs)
    after = tuple(record.val_nll for record in run.summary.epochs)
    return LineChart(
        title="Loss",
        note="Nats per token; the training loss is weighted as in training.",
        x=_epochs(run),
        x_label="epoch",
        y_label="nats per token",
        series=measured_series(
            (Series("training loss", training, "blue"), Series("NLL after the epoch", after, "orange"))
        ),
    )


def _epochs(run: RunContents) -> tuple[int, ...]:
    return tuple(record.epoch + 1 for record in run.summary.epochs)


def _mean(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.mean
