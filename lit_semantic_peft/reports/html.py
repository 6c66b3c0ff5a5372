"""The report: one page that needs no network, from the files of a run folder."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lit_semantic_peft.files import mark, write_text
from lit_semantic_peft.reports.answers import score_rows, side_effect_view
from lit_semantic_peft.reports.charts import CHARTS, describe_charts
from lit_semantic_peft.reports.charts.kinds import Chart, HeatMap, LineChart
from lit_semantic_peft.reports.charts.svg import draw_svg
from lit_semantic_peft.reports.conflicts import worst_conflicts
from lit_semantic_peft.reports.page_data import fact_data, heat_data, sampled_rows, script_json
from lit_semantic_peft.reports.phrases import mean_percent, unbroken
from lit_semantic_peft.reports.plots import write_plots
from lit_semantic_peft.reports.run_folder import RunContents, RunFolder, RunPaths
from lit_semantic_peft.reports.sections import (
    about_line,
    conflict_views,
    interference_moments,
    probe_view,
    provenance_rows,
    tiles,
)
from lit_semantic_peft.reports.sentences import known_facts_were_dropped, summary_sentences
from lit_semantic_peft.reports.side_effects import measure_side_effects

MAX_TABLE_ROWS = 10_000
"""Facts in the page's table; a larger run shows an even sample, with a note."""


def build_report(run_folder: str | Path | RunFolder, contents: RunContents | None = None) -> Path:
    """Writes the report and the plots of a run folder, each atomically.

    Args:
        run_folder: The folder; needs the fact table and the summary, uses the probe table, the gradient matrix and the
            configuration where they are there.
        contents: What the folder holds, where the caller has it in memory; else it is read.

    Returns:
        The path of the report. The same folder gives the same bytes.

    Raises:
        InputError: A file that is needed is missing, or one cannot be read.
    """
    folder = RunFolder(run_folder)
    run = contents or folder.read()
    folder.refuse_foreign_files((), (RunPaths.report,))
    charts = describe_charts(run)
    page = render_report(run, charts)
    write_plots(folder, charts)
    write_text(folder.paths.report, page, RunPaths.report.kind)
    return folder.paths.report


def render_report(run: RunContents, charts: dict[str, Chart] | None = None) -> str:
    """The page as text.

    Args:
        run: What is known of the run.
        charts: From `describe_charts`; None to make them here.
    """
    charts = charts or describe_charts(run)
    summary, facts, config = run.summary, run.facts, run.config
    if not config and summary.config:
        config = json.dumps(summary.config, indent=2, ensure_ascii=False)
    rows = sampled_rows(len(facts), MAX_TABLE_ROWS)
    row_of = {row: shown for shown, row in enumerate(rows)}
    heat, history = charts["heat_map"], charts["interference_history"]
    assert isinstance(heat, HeatMap)
    assert isinstance(history, LineChart)
    table = fact_data(facts if len(rows) == len(facts) else facts.take(rows))
    data = {"facts": table, "heat": heat_data(heat, facts, row_of) if heat.is_measured else None}
    return _environment().get_template("report.html.j2").render(
        mark=mark(RunPaths.report.kind),
        name=summary.name or run.name,
        summary=summary,
        sentences=[unbroken(sentence) for sentence in summary_sentences(summary, facts)],
        known_dropped=known_facts_were_dropped(summary, config),
        is_zero_before=mean_percent(summary.score("efficacy").kept.before) in ("0 %", "not measured"),
        tiles=tiles(summary),
        about_line=about_line(summary),
        scores=score_rows(summary),
        side_effects=side_effect_view(measure_side_effects(facts, run.probes)),
        charts=_drawn(charts),
        moments=interference_moments(history, summary) if history.x else None,
        heat=heat if heat.is_measured else None,
        conflicts=conflict_views(worst_conflicts(facts, run.matrix), facts, row_of),
        probes=probe_view(run.probes, facts) if run.probes is not None else None,
        config=config,
        provenance=provenance_rows(summary),
        num_table_rows=len(rows),
        num_all_rows=len(facts),
        cut_at=table["cut_at"],
        facts_file=RunPaths.facts.name,
        probes_file=RunPaths.probes.name,
        data=script_json(data),
    )  # fmt: skip


def _drawn(charts: dict[str, Chart]) -> dict[str, list[dict[str, Any]]]:
    """Of each section, its charts with their drawings; the heat map is drawn by the page's script."""
    drawn: dict[str, list[dict[str, Any]]] = {entry.section: [] for entry in CHARTS}
    for entry in CHARTS:
        chart = charts[entry.name]
        if not isinstance(chart, HeatMap):
            drawn[entry.section].append({"about": chart, "drawing": draw_svg(chart)})
    return drawn


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("lit_semantic_peft.reports", package_path="."),
        autoescape=True,  # every value of the page is text unless this package says otherwise
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
