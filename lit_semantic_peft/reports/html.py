"""The report: one page that needs no network, from the files of a run folder."""

import logging
from pathlib import Path
from typing import Any

from lit_semantic_peft.files import write_text
from lit_semantic_peft.reports.answers import gate_note, score_rows, side_effect_view
from lit_semantic_peft.reports.attempts import Attempts
from lit_semantic_peft.reports.charts import describe_charts
from lit_semantic_peft.reports.charts.kinds import Chart
from lit_semantic_peft.reports.environment import environment
from lit_semantic_peft.reports.experts import experts_view
from lit_semantic_peft.reports.page_parts import page_parts
from lit_semantic_peft.reports.phrases import mean_percent, unbroken
from lit_semantic_peft.reports.plots import write_plots
from lit_semantic_peft.reports.run_folder import RunContents, RunFolder, RunPaths
from lit_semantic_peft.reports.score_view import score_parts
from lit_semantic_peft.reports.sections import probe_view, resisting_view, tiles, wordings_view
from lit_semantic_peft.reports.sentences import known_facts_were_dropped, summary_sentences
from lit_semantic_peft.reports.side_effects import measure_side_effects
from lit_semantic_peft.reports.verdict import NO_DAMAGE, judged

logger = logging.getLogger(__name__)


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
    folder.refuse_foreign_files((), (RunPaths.report, RunPaths.plots))
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
    """The page as text: of a training, or of what `score` found.

    Args:
        run: What is known of the run.
        charts: From `describe_charts`; None to make them here.
        attempts: What failed so far, which the page shows; None for nothing.
    """
    attempts = attempts or Attempts()
    charts = describe_charts(run, attempts) if charts is None else charts
    common, row_of = page_parts(run, charts, attempts)
    if run.score is None:
        template, own = "report.html.j2", _training_parts(run, common["config"], attempts)
    else:
        template, own = "score.html.j2", score_parts(run, run.score, row_of, attempts)
    return environment().get_template(template).render(**common, **own, left_out=attempts.failures)


def _training_parts(run: RunContents, config: str, attempts: Attempts) -> dict[str, Any]:
    """What only the page of a training has."""
    summary, facts, probes, make = run.summary, run.facts, run.probes, attempts.make
    return {
        "sentences": make("what happened", lambda: list(map(unbroken, summary_sentences(summary, facts))), []),
        "verdict": make("verdict", lambda: judged(summary), None),
        "tiles": make("numbers at the top", lambda: tiles(summary), []),
        "scores": make("scores", lambda: score_rows(summary), []),
        "gate": make("gate", lambda: gate_note(summary), ""),
        "side_effects": make("side effects", lambda: side_effect_view(measure_side_effects(facts, probes)), None),
        "resisting": make("facts that resist", lambda: resisting_view(summary), []),
        "weak_wordings": make("wordings that fail", lambda: wordings_view(summary), []),
        "num_wordings": summary.num_wordings,
        "is_gated": summary.gate is not None or summary.routing is not None,
        "experts": make("experts", lambda: experts_view(summary), None),
        "probes": None if probes is None else make("neighbours", lambda: probe_view(probes, facts), None),
        "no_damage": NO_DAMAGE,
        "num_resisting": summary.num_resisting,
        "known_dropped": known_facts_were_dropped(summary, config),
        "is_zero_before": mean_percent(summary.score("efficacy").kept.before) in ("0 %", "not measured"),
    }
