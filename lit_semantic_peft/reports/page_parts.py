"""What the pages of `fit` and of `score` have in common: table of facts, heat map, conflicts, provenance."""

import json
from functools import partial
from typing import Any

from lit_semantic_peft.files import mark
from lit_semantic_peft.reports.attempts import Attempts
from lit_semantic_peft.reports.charts import CHARTS
from lit_semantic_peft.reports.charts.kinds import Chart, HeatMap, LineChart
from lit_semantic_peft.reports.charts.svg import draw_svg
from lit_semantic_peft.reports.conflicts import worst_conflicts
from lit_semantic_peft.reports.page_data import fact_data, heat_data, probe_data, sampled_rows, script_json
from lit_semantic_peft.reports.run_folder import RunContents, RunPaths
from lit_semantic_peft.reports.sections import (
    about_line,
    command_words,
    conflict_views,
    interference_moments,
    provenance_rows,
)

MAX_TABLE_ROWS = 10_000
"""Facts in the page's table; a larger run shows an even sample, with a note."""

_VIEWS = (
    ("all", "all facts", None),
    ("kept", "kept", None),
    ("dropped", "dropped", None),
    ("missed", "kept, not answered right", "efficacy_after"),
    ("pushed", "pushed away", "pushed_away"),
    ("undone", "net transfer below −1", "net_transfer"),
    ("forgotten", "forgotten at least once", "forgetting_events"),
)
"""Choices of the table of facts: name, words, and the column without which it is not offered."""


def page_parts(run: RunContents, charts: dict[str, Chart], attempts: Attempts) -> tuple[dict[str, Any], dict[int, int]]:
    """The values of the templates that both pages include.

    Args:
        run: What is known of the run.
        charts: From `describe_charts`.
        attempts: Keeps the reasons of what cannot be made.

    Returns:
        The values by name; the row in the page's table by row of the fact table.
    """
    summary, facts, config = run.summary, run.facts, run.config
    if not config and summary.config:
        config = json.dumps(summary.config, indent=2, ensure_ascii=False)
    rows = sampled_rows(len(facts), MAX_TABLE_ROWS)
    row_of = {row: shown for shown, row in enumerate(rows)}
    make = attempts.make
    heat, history = charts.get("heat_map"), charts.get("interference_history")
    heat_numbers = moments = asked = None
    if isinstance(heat, HeatMap) and heat.is_measured:
        heat_numbers = make("heat map", partial(heat_data, heat, facts, row_of), None)
    if isinstance(history, LineChart) and history.x:
        moments = make("interference in numbers", partial(interference_moments, history, summary), None)
    shown = facts if len(rows) == len(facts) else facts.take(rows)
    table = make("table of facts", partial(fact_data, shown), fact_data(facts.slice(0, 0)))
    if run.probes is not None:
        ids = shown.column("fact_id").to_pylist()
        asked = make("answers in the facts' cards", partial(probe_data, run.probes, ids), None)
    parts = {
        "name": summary.name or run.name,
        "mark": mark(RunPaths.report.kind),
        "about_line": make("line under the title", lambda: about_line(summary), ""),
        "moments": moments,
        "heat": None if heat_numbers is None else heat,
        "conflicts": make(
            "worst conflicts", lambda: conflict_views(worst_conflicts(facts, run.matrix), facts, row_of), []
        ),
        "charts": _drawn(charts, attempts),
        "views": [(name, text) for name, text, needs in _VIEWS if needs is None or needs in table["kinds"]],
        "has_answers_after": "answer_after" in table["kinds"],
        "num_table_rows": len(rows),
        "num_all_rows": len(facts),
        "cut_at": table["cut_at"],
        "are_probes_cut": asked is not None and asked["is_cut"],
        "facts_file": RunPaths.facts.name,
        "probes_file": RunPaths.probes.name,
        "command": make("command", lambda: command_words(summary), []),
        "provenance": make("provenance", lambda: provenance_rows(summary), []),
        "config": config,
        "data": script_json({"facts": table, "heat": heat_numbers, "probes": asked}),
    }
    return parts, row_of


def _drawn(charts: dict[str, Chart], attempts: Attempts) -> dict[str, list[dict[str, Any]]]:
    """Of each section, its charts with their drawings; the heat map is drawn by the page's script."""
    drawn: dict[str, list[dict[str, Any]]] = {entry.section: [] for entry in CHARTS}
    for entry in CHARTS:
        chart = charts.get(entry.name)
        if chart is not None and not isinstance(chart, HeatMap):
            drawing = attempts.make(f"drawing `{entry.name}`", partial(draw_svg, chart), None)
            drawn[entry.section].append({"about": chart, "drawing": drawing})
    return drawn
