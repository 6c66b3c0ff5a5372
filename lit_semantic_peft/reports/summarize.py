"""From the fact table to the numbers of a run."""

from collections import Counter
from dataclasses import fields
from typing import Any

import pyarrow as pa

from lit_semantic_peft.evaluation.scores import SCORES
from lit_semantic_peft.reports.records import Estimate, FactCounts, ScoreRecord, Sides, Summary


def count_facts(facts: pa.Table) -> FactCounts:
    """Counts facts and measures scores, so that every number of a summary is a number of the table's rows.

    Args:
        facts: The fact table. Rows of the splits `retain` and `probe` are neither kept nor dropped.

    Returns:
        Counts, and means over the facts where the value was measured.
    """
    rows = [row for row in facts.to_pylist() if row["split"] in (None, "", "inject")]
    kept = [row for row in rows if row["kept"] is not False]
    dropped = [row for row in rows if row["kept"] is False]
    reasons = Counter(row["drop_reason"] or "no reason given" for row in dropped)
    is_pushed = [row["pushed_away"] for row in kept if row["pushed_away"] is not None]
    return FactCounts(
        num_facts=len(rows),
        num_kept=len(kept),
        num_dropped=len(dropped),
        dropped_by_reason=dict(reasons.most_common()),
        pushed_away=sum(is_pushed) / len(is_pushed) if is_pushed else None,
        num_neighbors=sum(row["num_neighbors"] or 0 for row in kept) or None,
        scores=_scores(kept, dropped),
    )


def summarize(facts: pa.Table, **fields_of_run: Any) -> Summary:
    """A summary whose counts and scores come from the table and whose other fields are given.

    Args:
        facts: The fact table.
        fields_of_run: Further fields of `Summary`, by name; they win over what the table says.
    """
    counts = count_facts(facts)
    from_table = {item.name: getattr(counts, item.name) for item in fields(counts)}
    return Summary(**(from_table | fields_of_run))


def _scores(kept: list[dict[str, Any]], dropped: list[dict[str, Any]]) -> tuple[ScoreRecord, ...]:
    def sides(rows: list[dict[str, Any]], before: str | None, after: str) -> Sides:
        return Sides(
            before=Estimate.of(row[before] for row in rows) if before is not None else None,
            after=Estimate.of(row[after] for row in rows),
        )

    records = (
        ScoreRecord(one.name, *(sides(rows, one.before, one.after) for rows in (kept, dropped))) for one in SCORES
    )
    return tuple(record for record in records if record.kept != Sides() or record.dropped != Sides())
