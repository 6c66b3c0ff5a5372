"""The contents of the page's sections, as text and numbers: tiles, conflicts, neighbours, provenance."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from lit_semantic_peft.evaluation.scores import label_of
from lit_semantic_peft.reports.charts.interference import worst_measurement
from lit_semantic_peft.reports.charts.kinds import LineChart
from lit_semantic_peft.reports.conflicts import Conflict
from lit_semantic_peft.reports.phrases import capitalized, cut, mean_percent, percent, signed, unbroken
from lit_semantic_peft.reports.records import Estimate, FormsRecord, Seconds, Sides, Summary

MAX_PROBE_ROWS = 400
"""Neighbours in the page; changed answers come first."""


def tiles(summary: Summary) -> list[dict[str, str]]:
    """The numbers at the top of the page.

    Args:
        summary: The run's numbers.
    """

    def tile(label: str, share: float | None, note: str) -> dict[str, str]:
        value, note = unbroken(percent(share)), unbroken(note)
        return {"label": label, "value": value, "note": note, "empty": "yes" if share is None else ""}

    def of_score(label: str, sides: Sides, whose: str) -> dict[str, str]:
        before = f"{mean_percent(sides.before)} before" if sides.before is not None else "before: not measured"
        return tile(label, _mean(sides.after), f"of the {whose} facts; {before}")

    used = summary.as_used
    efficacy, locality = used.score("efficacy"), used.score("locality").kept.after
    rates = [record.conflict_rate for record in summary.interference if record.conflict_rate is not None]
    conflicts = "at the end" if rates else "of facts"
    if len(rates) > 1:  # a single one is from after training
        conflicts += f"; {percent(rates[0])} at the start, {percent(max(rates))} at worst"
    return [
        {
            "label": "Facts kept",
            "value": f"{summary.num_kept}",
            "note": f"of {summary.num_facts}; {summary.num_dropped} dropped",
            "empty": "",
        },
        of_score(capitalized(label_of("efficacy")), efficacy.kept, "kept"),
        *(
            [of_score(f"{capitalized(label_of('efficacy'))}, dropped facts", efficacy.dropped, "dropped")]
            if summary.num_dropped
            else []
        ),
        tile(
            capitalized(label_of("locality")),
            _mean(locality),
            f"of the answers near {locality.num_facts} kept facts" if locality else "of the neighbouring answers",
        ),
        tile("Pushed away", summary.pushed_away, "of the kept facts are farther after training"),
        tile("Pairs in conflict", rates[-1] if rates else None, conflicts),
    ]


def about_line(summary: Summary) -> str:
    """The line under the page's title: adapter, base model, size, scale, date.

    Args:
        summary: The run's numbers.
    """
    parts = [part for part in (summary.peft_type, summary.base_model) if part]
    if summary.trainable_parameters is not None:
        parts.append(f"{summary.trainable_parameters:,} trained parameters".replace(",", "\u202f"))
    if summary.scale is not None:
        parts.append(f"scaled by {summary.scale:.3g} after training")
    if summary.created:
        parts.append(summary.created.replace("T", " ")[:16])
    return " · ".join(parts)


def interference_moments(history: LineChart, summary: Summary) -> dict[str, Any]:
    """Start, worst and end of the interference over training, in numbers.

    Args:
        history: The chart of it; has measurements.
        summary: The run's numbers.
    """
    last, worst = len(history.x) - 1, worst_measurement(summary.interference)
    moments = {"start": 0, "worst": worst, "end": last}
    if last < 1:
        moments = {"measured": 0}
    elif worst in (None, 0, last):
        del moments["worst"]
    places = {name: at for name, at in moments.items() if at is not None}
    return {
        "columns": [f"{name} ({history.x[at]})" for name, at in places.items()],
        "x_label": history.x_label,
        "rows": [(one.label, [unbroken(percent(one.values[at])) for at in places.values()]) for one in history.series],
        "num_measured": len(history.x),
    }


def conflict_views(conflicts: Sequence[Conflict], facts: pa.Table, row_of: Mapping[int, int]) -> list[dict[str, Any]]:
    """The worst conflicts as text.

    Args:
        conflicts: The conflicts, worst first.
        facts: The whole fact table.
        row_of: Row in the page's table by row of the fact table.
    """
    most = max((conflict.undone or 0.0 for conflict in conflicts), default=0.0)

    def fact(row: int) -> dict[str, Any]:
        value = facts.slice(row, 1).to_pylist()[0]
        return {
            "prompt": cut(value["prompt"], 240),
            "target": cut(value["target"], 120),
            "relation": value["relation"] or "",
            "row": row_of.get(row),
        }

    return [
        {
            "victim": fact(conflict.victim),
            "aggressor": fact(conflict.aggressor),
            "cosine": signed(conflict.cosine),
            "undone": _undone(conflict.undone),
            "bar": round(100 * (conflict.undone or 0.0) / most) if most else 0,
            "net_transfer": signed(conflict.net_transfer),
        }
        for conflict in conflicts
    ]


def probe_view(probes: pa.Table, facts: pa.Table) -> dict[str, Any]:
    """The neighbours' answers before and after, changed ones first; one that stands beside several facts once.

    Args:
        probes: The probe table.
        facts: The fact table.
    """
    near = [row for row in probes.to_pylist() if row["kind"] == "neighborhood"]
    rows = list({(row["prompt"], row["target"]): row for row in reversed(near)}.values())[::-1]
    changed = [row for row in rows if row["unchanged"] is False]
    ordered = changed + [row for row in rows if row["unchanged"] is not False]
    text_of = dict(zip(facts.column("fact_id").to_pylist(), facts.column("prompt").to_pylist(), strict=True))
    verdict = {True: "unchanged", False: "changed", None: "not measured"}
    return {
        "num_all": len(rows),
        "num_changed": len(changed),
        "lost": sum(1 for row in changed if row["correct_before"] and row["correct_after"] is False),
        "gained": sum(1 for row in changed if row["correct_after"] and row["correct_before"] is False),
        "rows": [
            {
                "prompt": cut(row["prompt"], 240),
                "target": cut(row["target"] or "", 80),
                "before": cut(row["answer_before"], 80),
                "after": cut(row["answer_after"], 80),
                "verdict": verdict[row["unchanged"]],
                "beside": cut(text_of.get(row["fact_id"]) or row["fact_id"], 120),
            }
            for row in ordered[:MAX_PROBE_ROWS]
        ],
    }


def resisting_view(summary: Summary) -> list[dict[str, str]]:
    """The kept facts that training did not teach, as text.

    Args:
        summary: The run's numbers.
    """
    return [
        {
            "prompt": cut(one.prompt, 240),
            "target": cut(one.target, 80),
            "answer": cut(one.answer, 80),
            "outcome": one.outcome,
            "reason": one.reason,
        }
        for one in summary.resisting
    ]


def wordings_view(summary: Summary) -> list[dict[str, str]]:
    """The wordings that fail, as text.

    Args:
        summary: The run's numbers.
    """
    return [
        {
            "wording": cut(one.wording, 240),
            "kind": one.kind,
            "relation": one.relation,
            "recalled": f"{one.num_recalled} of {one.num_facts}",
            "about": cut(one.about, 160),
        }
        for one in summary.weak_wordings
    ]


def command_words(summary: Summary) -> list[str]:
    """The run's command, cut where a line may end: each option stands with its value.

    Args:
        summary: The run's numbers.
    """
    return re.split(r" (?=--)", summary.command) if summary.command else []


def provenance_rows(summary: Summary) -> list[tuple[str, str]]:
    """The provenance of the run, as far as it is known; beside the command.

    Args:
        summary: The run's numbers.
    """
    seconds = summary.seconds or Seconds()
    parts = ", ".join(f"{part} {value:.0f}" for part, value in seconds.measured.items())
    rows = [
        ("Ended", summary.created and summary.created.replace("T", " ").replace("+00:00", " UTC")),
        ("Base model", summary.base_model),
        ("Note on the base model", summary.base_model_note),
        ("Adapter", summary.peft_type),
        ("Distance", summary.distance_name),
        *_forms_rows(summary.forms),
        ("Seconds", f"{seconds.total:.0f} ({parts})" if seconds.total is not None else None),
        ("Peak memory", f"{summary.peak_memory_gb:.2f} GB" if summary.peak_memory_gb is not None else None),
        *sorted(summary.versions.items()),
    ]
    return [(label, value) for label, value in rows if value]


def _forms_rows(forms: FormsRecord | None) -> list[tuple[str, str]]:
    if forms is None:
        return []
    taught = ", ".join(f"{name} ({count} facts)" for name, count in forms.taught.items()) or "none"
    return [("Taught forms beside the own prompt", taught), ("Asked during training", forms.stopping_text)]


def _undone(share: float | None) -> str | None:
    """The share of a step that is taken back; in times where per cent would be hard to read."""
    if share is None:
        return None
    return f"{share:.1f} ×" if share >= 1 else unbroken(percent(share))


def _mean(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.mean
