"""The page's section on what was really learned: scores and side effects as text. No drawing."""

from typing import Any

from lit_semantic_peft.evaluation.scores import RETENTION, SCORES, ScoreDefinition
from lit_semantic_peft.reports.phrases import estimate_text, signed
from lit_semantic_peft.reports.records import Estimate, Summary
from lit_semantic_peft.reports.side_effects import EVALUATED, SideEffect, SideEffects, most_facts

MAX_RELATIONS = 40
"""Relations in the page's matrix of side effects; those with most facts are shown."""

_NONE = "–"


def score_rows(summary: Summary) -> list[dict[str, str]]:
    """A row per score that was measured: name, description, before, after with interval, without the gate, counts."""
    rows, used = [], summary.as_used
    for definition in SCORES:
        record = used.score(definition.name)
        kept, dropped = record.kept, record.dropped
        if any(side is not None for side in (kept.before, kept.after, dropped.after)):
            without = summary.score(definition.name).kept.after
            rows.append(_row(definition, kept.before, kept.after, dropped.after, without))
    if (retention := used.retention) is not None and summary.retention is not None:
        rows += [
            _row(definition, None, after, None, summary.retention.of(definition.name))
            for definition in RETENTION
            if (after := retention.of(definition.name)) is not None
        ]
    return rows


def _row(
    definition: ScoreDefinition,
    before: Estimate | None,
    after: Estimate | None,
    dropped: Estimate | None,
    without_gate: Estimate | None,
) -> dict[str, str]:
    def text(estimate: Estimate | None) -> str:
        return _NONE if estimate is None else estimate_text(estimate, definition.is_share)

    def count(estimate: Estimate | None) -> str:
        return _NONE if estimate is None else str(estimate.num_facts)

    return {
        "name": definition.name,
        "description": definition.description.replace("`", ""),  # plain text on the page
        "before": text(before),
        "after": text(after),
        "without_gate": text(without_gate),
        "count": count(after or before),
        "dropped": text(dropped),
        "dropped_count": count(dropped),
    }


def gate_note(summary: Summary) -> str:
    """What the columns are where there is a gate; "" where there is none."""
    if summary.gate is None:
        return ""
    return (
        "“After” is through the gate, as lsp.load_gated loads the adapter: it acts only on questions that name what "
        "was taught. Plain peft loads it without the gate."
    )


def side_effect_view(effects: SideEffects) -> dict[str, Any] | None:
    """The matrix as text; None where nothing was measured."""
    if not effects.cells:
        return None
    shown = most_facts(effects, MAX_RELATIONS)
    columns = [name for name in EVALUATED if any(evaluated == name for _, evaluated in effects.cells)]
    return {
        "columns": columns,
        "rows": [
            {
                "relation": relation,
                "is_taught": relation in effects.taught,
                "cells": [_cell(effects.cells.get((relation, column))) for column in columns],
            }
            for relation in shown
        ],
        "note": _note(effects, len(shown)),
        "any_exceeds": bool(effects.beyond_chance),
    }


def _cell(cell: SideEffect | None) -> dict[str, Any]:
    if cell is None:
        return {"text": _NONE, "about": "not measured", "exceeds_chance": False}
    star = " *" if cell.exceeds_chance else ""
    return {
        "text": f"{signed(cell.nll_delta)}{star}",
        "about": f"{cell.num_facts} facts, p = {cell.p_value:.2g}",
        "exceeds_chance": cell.exceeds_chance,
    }


def _note(effects: SideEffects, num_shown: int) -> str:
    beyond = effects.beyond_chance
    text = "No side effect exceeds chance."
    if beyond:
        worst = beyond[0]
        count = "One side effect exceeds" if len(beyond) == 1 else f"{len(beyond)} side effects exceed"
        text = (
            f"{count} chance; the largest: {worst.evaluated} of “{worst.relation}”, "
            f"{signed(worst.nll_delta)} over {worst.num_facts} facts."
        )
    if num_shown < len(effects.relations):
        text += f" The {num_shown} of {len(effects.relations)} relations with most facts are shown."
    return text
