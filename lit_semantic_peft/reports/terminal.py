"""The short table at the end of a run."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lit_semantic_peft.evaluation.scores import RETENTION, SCORES
from lit_semantic_peft.reports.phrases import cut, estimate_text, percent, reason_phrase
from lit_semantic_peft.reports.records import Estimate, Sides, Summary
from lit_semantic_peft.reports.run_folder import RunPaths
from lit_semantic_peft.reports.verdict import NO_DAMAGE, judged

_OF_DROPPED = ("efficacy",)
"""Scores whose mean over the dropped facts is shown too."""


_SHOWN = 5
"""Facts that resist, and wordings that fail, that are named."""
_WORDING = 100  # characters


def terminal_summary(summary: Summary) -> Group:
    """What a run cost, a short table of its numbers, the facts that it did not teach and the wordings that fail.

    Args:
        summary: The run's summary.

    Returns:
        What to print with `rich`.
    """
    return Group(*_verdict(summary), _numbers(summary), *map(Text, (*_resisting(summary), *_weak_wordings(summary))))


def _verdict(summary: Summary) -> list[Text]:
    """What the run cost, in colour, before its numbers."""
    found = judged(summary)
    if not found:
        return [] if found is None else [Text(NO_DAMAGE, style="green")]
    return [Text("What to look at:", style="bold yellow"), *(Text(f"  {one}", style="yellow") for one in found)]


def _resisting(summary: Summary) -> list[str]:
    """The facts that resist, with what goes with it."""
    if not summary.num_resisting:
        return []
    shown = summary.resisting[:_SHOWN]
    more = summary.num_resisting - len(shown)
    return [
        f"Facts that resist, of {summary.num_kept}: {summary.num_resisting}",
        *(f"  {one.prompt} {one.target}: {'; '.join((one.outcome, *one.reasons))}" for one in shown),
        *([f"  and {more} more, in {RunPaths.report.name} and {RunPaths.summary.name}"] if more else []),
    ]


def _weak_wordings(summary: Summary) -> list[str]:
    """The wordings that fail, with what is answered instead."""
    shown = summary.weak_wordings[:_SHOWN]
    return [
        *([f"Wordings in which most facts are not recalled, of {summary.num_wordings}:"] if shown else []),
        *(
            f"  “{cut(one.wording, _WORDING)}”{f' ({one.relation})' if one.relation else ''}: {one.num_recalled} of "
            f"{one.num_facts}{f'; {one.about}' if one.about else ''}"
            for one in shown
        ),
    ]


def _numbers(summary: Summary) -> Table:
    table = Table(title=summary.name, title_justify="left", show_header=True, header_style="bold")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    table.add_row("facts kept", "", f"{summary.num_kept} of {summary.num_facts}")
    if summary.num_dropped:
        reasons = ", ".join(f"{count} {reason_phrase(reason)}" for reason, count in summary.dropped_by_reason.items())
        table.add_row("facts dropped", "", reasons or str(summary.num_dropped))

    def add(label: str, sides: Sides, is_share: bool) -> None:
        def text(estimate: Estimate | None) -> str:
            return "" if estimate is None else estimate_text(estimate, is_share)

        if sides != Sides():
            table.add_row(label, text(sides.before), text(sides.after))

    used = summary.as_used
    for score in SCORES:
        if score.in_terminal:
            record = used.score(score.name)
            add(score.label, record.kept, score.is_share)
            if score.name in _OF_DROPPED:
                add(f"{score.label}, dropped facts", record.dropped, score.is_share)
            if (without := summary.score(score.name).kept.after) != record.kept.after:
                add(f"{score.label}, ungated", Sides(after=without), score.is_share)
    for retention, whose in ((used.retention, ""), (summary.retention, ", ungated")):
        if retention is None or (whose and retention == used.retention):
            continue
        for score in RETENTION:
            if score.in_terminal:
                add(score.label + whose, Sides(after=retention.of(score.name)), score.is_share)
        if retention.nll_before is not None and retention.nll_after is not None:
            before, after = f"{retention.nll_before:.3f}", f"{retention.nll_after:.3f}"
            table.add_row(f"unrelated text, nats per token{whose}", before, after)
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
