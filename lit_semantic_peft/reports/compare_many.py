"""Any number of runs over the same facts side by side, with what they cost: a column per run, the best in bold."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Column, Table
from rich.text import Text

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation.scores import SCORES
from lit_semantic_peft.reports.compare import facts_by_id, refuse_other_facts
from lit_semantic_peft.reports.records import Summary
from lit_semantic_peft.reports.run_folder import RunFolder

_ALIKE = 1e-9
"""Numbers that differ by less are equally good."""


@dataclass(frozen=True, slots=True)
class ComparedNumber:
    """One number of several runs.

    Attributes:
        label: What it is.
        values: Of each run; None where it was not measured.
        higher_is_better: Whether more is better.
        num_facts: Facts that it is a mean of; None where it is of something else.
        show: Makes text of a value.
    """

    label: str
    values: tuple[float | None, ...]
    higher_is_better: bool
    num_facts: int | None
    show: Callable[[float], str]

    @property
    def best(self) -> tuple[bool, ...]:
        """Of each run, whether no other is better and one is worse."""
        measured = [value for value in self.values if value is not None]
        if not measured or max(measured) - min(measured) < _ALIKE:
            return (False,) * len(self.values)
        best = max(measured) if self.higher_is_better else min(measured)
        return tuple(value is not None and abs(value - best) < _ALIKE for value in self.values)


def compare_many(runs: Sequence[str | Path], *, only_kept: bool = False) -> list[ComparedNumber]:
    """The scores of several runs over the facts that all of them measured, and what each cost.

    Args:
        runs: Run folders.
        only_kept: Whether only facts count that every run trained.

    Raises:
        InputError: If a folder cannot be compared, or no fact is in all of them.
    """
    tables = [facts_by_id(run) for run in runs]
    common = [fact_id for fact_id in tables[0] if all(fact_id in table for table in tables)]
    for run, table in zip(runs[1:], tables[1:], strict=True):
        refuse_other_facts(runs[0], run, [(tables[0][fact_id], table[fact_id]) for fact_id in common])
    if only_kept:
        common = [one for one in common if all(table[one]["kept"] is not False for table in tables)]
    if not common:
        raise InputError(f"{', '.join(f'`{run}`' for run in runs)} have no fact in common by `fact_id`")
    found = []
    for score in SCORES:
        rows = [[table[fact_id][score.after] for table in tables] for fact_id in common]
        rows = [row for row in rows if None not in row]
        if rows:
            means = tuple(float(sum(column)) / len(rows) for column in zip(*rows, strict=True))
            show = _percent if score.is_share else _number
            found.append(ComparedNumber(score.name, means, score.higher_is_better, len(rows), show))
    return [*found, *costs(runs)]


def costs(runs: Sequence[str | Path]) -> list[ComparedNumber]:
    """What runs did to unrelated text and known facts, and how long they took, as far as their summaries say it.

    Args:
        runs: Run folders.
    """
    summaries = [RunFolder(run).summary if RunFolder(run).paths.summary.is_file() else None for run in runs]
    kinds: tuple[tuple[str, Callable[[Summary], float | None], bool, Callable[[float], str]], ...] = (
        ("unrelated text, nats per token, after − before", _text_rise, False, lambda value: f"{value:+.3f}"),
        ("facts known before that still are", _known, True, _percent),
        ("seconds in all", lambda summary: summary.seconds.total if summary.seconds else None, False, _whole),
    )
    found = []
    for label, value_of, higher_is_better, show in kinds:
        values = tuple(None if summary is None else value_of(summary) for summary in summaries)
        if any(value is not None for value in values):
            found.append(ComparedNumber(label, values, higher_is_better, None, show))
    return found


def many_table(numbers: Sequence[ComparedNumber], runs: Sequence[str]) -> Table:
    """The numbers as a table for the terminal, the best of each row in bold.

    Args:
        numbers: From `compare_many`.
        runs: Names of the runs.
    """
    table = Table(Column("score", overflow="fold"), *(Column(run, justify="right") for run in runs), "n")
    for number in numbers:
        cells = [
            Text("–" if value is None else number.show(value), style="bold" if best else "")
            for value, best in zip(number.values, number.best, strict=True)
        ]
        table.add_row(number.label, *cells, "" if number.num_facts is None else str(number.num_facts))
    return table


def _text_rise(summary: Summary) -> float | None:
    retention = summary.retention
    if retention is None or retention.nll_before is None or retention.nll_after is None:
        return None
    return retention.nll_after - retention.nll_before


def _known(summary: Summary) -> float | None:
    known = summary.retention.known if summary.retention is not None else None
    return None if known is None else known.mean


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _number(value: float) -> str:
    return f"{value:.3f}"


def _whole(value: float) -> str:
    return f"{value:.0f}"
