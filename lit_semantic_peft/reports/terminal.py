"""The short table that ends a run."""

from rich.table import Table

from lit_semantic_peft.reports.phrases import estimate_text, mean_percent, percent, reason_phrase
from lit_semantic_peft.reports.records import Sides, Summary

_SHARES = (
    ("kept facts generated exactly", "efficacy", "kept"),
    ("kept facts recalled, teacher-forced", "efficacy_teacher_forced", "kept"),
    ("dropped facts generated exactly", "efficacy", "dropped"),
)
_WITH_INTERVAL = (
    ("paraphrases answered", "generalization"),
    ("conclusions said", "portability"),
    ("turns of doubt withstood", "robustness_plain"),
    ("turns of doubt withstood, chat", "robustness_chat"),
)
"""Scores of the kept facts, by label."""


def terminal_summary(summary: Summary) -> Table:
    """A short table of numbers for the end of a run.

    Args:
        summary: The run's summary.

    Returns:
        A table to print with `rich`.
    """
    table = Table(title=summary.name, title_justify="left", show_header=True, header_style="bold")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    table.add_row("facts kept", "", f"{summary.num_kept} of {summary.num_facts}")
    if summary.num_dropped:
        reasons = ", ".join(f"{count} {reason_phrase(reason)}" for reason, count in summary.dropped_by_reason.items())
        table.add_row("facts dropped", "", reasons or str(summary.num_dropped))
    for label, name, status in _SHARES:
        sides: Sides = getattr(summary.score(name), status)
        if sides != Sides():
            table.add_row(label, mean_percent(sides.before), mean_percent(sides.after))
    for label, name in _WITH_INTERVAL:
        sides = summary.score(name).kept
        if sides.after is not None:
            table.add_row(label, estimate_text(sides.before) if sides.before else "", estimate_text(sides.after))
    table.add_row("neighbours' answers unchanged", "", mean_percent(summary.score("locality").kept.after))
    if (retention := summary.retention) is not None:
        if retention.known is not None:
            table.add_row("other known facts still known", "", estimate_text(retention.known))
        if retention.nll_before is not None and retention.nll_after is not None:
            table.add_row("unrelated text, nats per token", f"{retention.nll_before:.3f}", f"{retention.nll_after:.3f}")
    table.add_row("kept facts pushed away", "", percent(summary.pushed_away))
    if summary.interference:
        first, last = summary.interference[0], summary.interference[-1]
        before = percent(first.conflict_rate) if first is not last else ""
        table.add_row("pairs of facts in conflict", before, percent(last.conflict_rate))
    if summary.seconds is not None and summary.seconds.total is not None:
        table.add_row("seconds in all", "", f"{summary.seconds.total:.0f}")
    if summary.peak_memory_gb is not None:
        table.add_row("peak memory, GB", "", f"{summary.peak_memory_gb:.1f}")
    return table
