"""From the fact table to the numbers of a run."""

from collections import Counter
from dataclasses import fields, replace
from typing import Any

import pyarrow as pa

from lit_semantic_peft.evaluation.scores import SCORES
from lit_semantic_peft.reports.records import Estimate, FactCounts, ScoreRecord, Sides, Summary
from lit_semantic_peft.reports.repetition import measure_repetition
from lit_semantic_peft.reports.resisting import MOST_LISTED, OUTCOMES, find_resisting
from lit_semantic_peft.reports.verdict import judged
from lit_semantic_peft.reports.wordings import MOST_WORDINGS, find_weak_wordings


def count_facts(facts: pa.Table, probes: pa.Table | None = None) -> FactCounts:
    """Counts facts and measures scores, so that every number of a summary is a number of the tables' rows.

    Args:
        facts: The fact table. Rows of the splits `retain` and `probe` are neither kept nor dropped.
        probes: The probe table; None where no probes were asked.

    Returns:
        Counts, and means over the facts where the value was measured.
    """
    all_rows = facts.to_pylist()
    rows = [row for row in all_rows if row["split"] in (None, "", "inject")]
    kept = [row for row in rows if row["kept"] is not False]
    dropped = [row for row in rows if row["kept"] is False]
    reasons = Counter(row["drop_reason"] or "no reason given" for row in dropped)
    repetition = measure_repetition(kept)
    resisting = find_resisting(kept, all_rows, probes, repetition)
    num_wordings, weak = find_weak_wordings(kept, probes)
    is_measured = any(row[name] is not None for row in kept for name in OUTCOMES)
    is_pushed = [row["pushed_away"] for row in kept if row["pushed_away"] is not None]
    return FactCounts(
        num_facts=len(rows),
        num_kept=len(kept),
        num_dropped=len(dropped),
        dropped_by_reason=dict(reasons.most_common()),
        pushed_away=sum(is_pushed) / len(is_pushed) if is_pushed else None,
        num_neighbors=_count_neighbors(kept, probes),
        begins_right=Sides(*(Estimate.of(row[f"begins_right_{side}"] for row in kept) for side in ("before", "after"))),
        repetition=repetition,
        num_resisting=len(resisting) if is_measured else None,
        resisting=tuple(resisting[:MOST_LISTED]),
        num_wordings=num_wordings,
        weak_wordings=tuple(weak[:MOST_WORDINGS]),
        num_retain=sum(row["split"] == "retain" for row in all_rows),
        scores=score_records(kept, dropped),
    )


def summarize(facts: pa.Table, probes: pa.Table | None = None, **fields_of_run: Any) -> Summary:
    """A summary whose counts and scores come from the tables and whose other fields are given.

    Args:
        facts: The fact table.
        probes: The probe table; None where no probes were asked.
        fields_of_run: Further fields of `Summary`, by name; they win over what the tables say. The verdict follows from
            them all.
    """
    counts = count_facts(facts, probes)
    from_table = {item.name: getattr(counts, item.name) for item in fields(counts)}
    summary = Summary(**(from_table | fields_of_run))
    return replace(summary, verdict=judged(summary))


def _count_neighbors(facts: list[dict[str, Any]], probes: pa.Table | None) -> int | None:
    """The different neighbours of these facts, one that stands beside several of them once, where it is known."""
    if probes is None:
        return sum(row["num_neighbors"] or 0 for row in facts) or None
    fact_ids = {row["fact_id"] for row in facts}
    rows = probes.select(["fact_id", "kind", "prompt", "target"]).to_pylist()
    of_facts = (row for row in rows if row["kind"] == "neighborhood" and row["fact_id"] in fact_ids)
    return len({(row["prompt"], row["target"]) for row in of_facts}) or None


def score_records(kept: list[dict[str, Any]], dropped: list[dict[str, Any]]) -> tuple[ScoreRecord, ...]:
    """Every score that was measured, in the order of `SCORES`.

    Args:
        kept: Rows of the fact table, of the kept facts.
        dropped: Of the dropped ones.
    """

    def sides(rows: list[dict[str, Any]], before: str | None, after: str) -> Sides:
        return Sides(
            before=Estimate.of(row[before] for row in rows) if before is not None else None,
            after=Estimate.of(row[after] for row in rows),
        )

    records = (
        ScoreRecord(one.name, *(sides(rows, one.before, one.after) for rows in (kept, dropped))) for one in SCORES
    )
    return tuple(record for record in records if record.kept != Sides() or record.dropped != Sides())
