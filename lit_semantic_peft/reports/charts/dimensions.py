"""What training gave and what it cost, in one picture."""

from lit_semantic_peft.evaluation.scores import label_of
from lit_semantic_peft.reports.charts.kinds import BeforeAfterChart, BeforeAfterRow
from lit_semantic_peft.reports.records import Estimate
from lit_semantic_peft.reports.run_folder import RunContents

_TAUGHT = ("efficacy", "generalization", "generalization_question", "generalization_reversed")


def dimensions_before_after(run: RunContents) -> BeforeAfterChart:
    """Recall of the own prompts and of other wordings, neighbours and known facts, as far as measured.

    Neighbours and known facts are compared with the base model, which keeps all of its own answers: they start at 1.

    Args:
        run: The run.
    """
    summary = run.summary.as_used
    rows = [
        BeforeAfterRow(label_of(name), "kept facts", _mean(sides.before), _mean(sides.after), "blue")
        for name in _TAUGHT
        if (sides := summary.score(name).kept).after is not None
    ]
    known = None if summary.retention is None else summary.retention.known
    still = (("locality", "beside kept facts", summary.score("locality").kept.after), ("retention_known", "", known))
    rows += [
        BeforeAfterRow(label_of(name), facts or f"{one.num_facts} facts, not taught", 1.0, one.mean, "orange")
        for name, facts, one in still
        if one is not None
    ]
    return BeforeAfterChart(
        title="What training gave and what it cost: before (○) and after (●)",
        note=f"Blue should rise, orange should stay at 100 %, where the base model is by definition.{_unrelated(run)}"
        + (" Through the gate." if summary.gate is not None else ""),
        x_label="share right, or as before",
        rows=tuple(rows),
    )


def _unrelated(run: RunContents) -> str:
    retention = run.summary.as_used.retention
    if retention is None or retention.nll_before is None or retention.nll_after is None:
        return ""
    before, after = retention.nll_before, retention.nll_after
    return f" Loss of unrelated text: {before:.2f} nats per token before, {after:.2f} after."


def _mean(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.mean
