"""The report: one page that needs no network, from the files of a run folder."""

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from lit_semantic_peft.files import mark, refuse_foreign, write_text
from lit_semantic_peft.reports.answers import gate_note, score_rows, side_effect_view
from lit_semantic_peft.reports.attempts import Attempts
from lit_semantic_peft.reports.charts import CHARTS, describe_charts
from lit_semantic_peft.reports.charts.kinds import Chart, HeatMap, LineChart
from lit_semantic_peft.reports.charts.png import PLOT
from lit_semantic_peft.reports.charts.svg import draw_svg
from lit_semantic_peft.reports.conflicts import worst_conflicts
from lit_semantic_peft.reports.experts import experts_view
from lit_semantic_peft.reports.page_data import fact_data, heat_data, probe_data, sampled_rows, script_json
from lit_semantic_peft.reports.phrases import mean_percent, unbroken
from lit_semantic_peft.reports.plots import write_plots
from lit_semantic_peft.reports.run_folder import RunContents, RunFolder, RunPaths
from lit_semantic_peft.reports.sections import (
    about_line,
    conflict_views,
    interference_moments,
    probe_view,
    provenance_rows,
    resisting_view,
    tiles,
)
from lit_semantic_peft.reports.sentences import known_facts_were_dropped, summary_sentences
from lit_semantic_peft.reports.side_effects import measure_side_effects
from lit_semantic_peft.reports.verdict import NO_DAMAGE, judged

logger = logging.getLogger(__name__)

MAX_TABLE_ROWS = 10_000
"""Facts in the page's table; a larger run shows an even sample, with a note."""


def build_report(run_folder: str | Path | RunFolder, contents: RunContents | None = None) -> Path:
    """Writes the report and the plots of a run folder, each atomically.

    A plot or a section that cannot be made is left out; the page and the log say why.

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
    for name in {entry.plot for entry in CHARTS}:
        refuse_foreign(folder.paths.plot(name), PLOT)
    attempts = Attempts()
    charts = describe_charts(run, attempts)
    write_plots(folder, charts, attempts)
    page = render_report(run, charts, attempts)
    write_text(folder.paths.report, page, RunPaths.report.kind)
    return folder.paths.report


def try_report(run_folder: str | Path, contents: RunContents) -> str:
    """Builds the report at the end of a run, which does not fail for it: adapter and tables are written by then.

    Args:
        run_folder: The run folder.
        contents: What it holds.

    Returns:
        Where the report is, or why there is none, as a line for the terminal.
    """
    try:
        build_report(run_folder, contents)
        return f"Report: {RunFolder(run_folder).paths.report.absolute()}"
    except Exception as error:
        logger.warning("The report cannot be made: %s: %s", type(error).__name__, error)
        return f"Adapter and tables: {run_folder}. `lit-semantic-peft report {run_folder}` makes the report."


def render_report(run: RunContents, charts: dict[str, Chart] | None = None, attempts: Attempts | None = None) -> str:
    """The page as text.

    Args:
        run: What is known of the run.
        charts: From `describe_charts`; None to make them here.
        attempts: What failed so far, which the page shows; None for nothing.
    """
    attempts = attempts or Attempts()
    charts = describe_charts(run, attempts) if charts is None else charts
    summary, facts, config = run.summary, run.facts, run.config
    if not config and summary.config:
        config = json.dumps(summary.config, indent=2, ensure_ascii=False)
    rows = sampled_rows(len(facts), MAX_TABLE_ROWS)
    row_of = {row: shown for shown, row in enumerate(rows)}
    make = attempts.make
    heat, history = charts.get("heat_map"), charts.get("interference_history")
    heat_numbers = None
    if isinstance(heat, HeatMap) and heat.is_measured:
        heat_numbers = make("heat map", partial(heat_data, heat, facts, row_of), None)
    moments = None
    if isinstance(history, LineChart) and history.x:
        moments = make("interference in numbers", partial(interference_moments, history, summary), None)
    shown = facts if len(rows) == len(facts) else facts.take(rows)
    table = make("table of facts", partial(fact_data, shown), fact_data(facts.slice(0, 0)))
    probes = run.probes
    asked = None
    if probes is not None:
        asked = make(
            "answers in the facts' cards", partial(probe_data, probes, shown.column("fact_id").to_pylist()), None
        )
    parts: dict[str, Any] = {
        "sentences": make("what happened", lambda: list(map(unbroken, summary_sentences(summary, facts))), []),
        "verdict": make("verdict", lambda: judged(summary), None),
        "tiles": make("numbers at the top", lambda: tiles(summary), []),
        "about_line": make("line under the title", lambda: about_line(summary), ""),
        "scores": make("scores", lambda: score_rows(summary), []),
        "gate": make("gate", lambda: gate_note(summary), ""),
        "side_effects": make("side effects", lambda: side_effect_view(measure_side_effects(facts, probes)), None),
        "resisting": make("facts that resist", lambda: resisting_view(summary), []),
        "conflicts": make(
            "worst conflicts", lambda: conflict_views(worst_conflicts(facts, run.matrix), facts, row_of), []
        ),
        "experts": make("experts", lambda: experts_view(summary), None),
        "probes": None if probes is None else make("neighbours", lambda: probe_view(probes, facts), None),
        "provenance": make("provenance", lambda: provenance_rows(summary), []),
        "charts": _drawn(charts, attempts),
    }
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            **parts,
            mark=mark(RunPaths.report.kind),
            no_damage=NO_DAMAGE,
            num_resisting=summary.num_resisting,
            name=summary.name or run.name,
            known_dropped=known_facts_were_dropped(summary, config),
            is_zero_before=mean_percent(summary.score("efficacy").kept.before) in ("0 %", "not measured"),
            moments=moments,
            heat=None if heat_numbers is None else heat,
            config=config,
            num_table_rows=len(rows),
            num_all_rows=len(facts),
            cut_at=table["cut_at"],
            are_probes_cut=asked is not None and asked["is_cut"],
            facts_file=RunPaths.facts.name,
            probes_file=RunPaths.probes.name,
            data=script_json({"facts": table, "heat": heat_numbers, "probes": asked}),
            left_out=attempts.failures,
        )
    )


def _drawn(charts: dict[str, Chart], attempts: Attempts) -> dict[str, list[dict[str, Any]]]:
    """Of each section, its charts with their drawings; the heat map is drawn by the page's script."""
    drawn: dict[str, list[dict[str, Any]]] = {entry.section: [] for entry in CHARTS}
    for entry in CHARTS:
        chart = charts.get(entry.name)
        if chart is not None and not isinstance(chart, HeatMap):
            drawing = attempts.make(f"drawing `{entry.name}`", partial(draw_svg, chart), None)
            drawn[entry.section].append({"about": chart, "drawing": drawing})
    return drawn


def _code(text: str) -> Markup:
    """Text in which what stands between backticks is shown as code."""
    parts = (escape(part) for part in text.split("`"))
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lit_semantic_peft.reports", package_path="."),
        autoescape=True,  # every value of the page is text unless this package says otherwise
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _code
    return environment
