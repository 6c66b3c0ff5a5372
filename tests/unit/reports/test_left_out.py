"""A report whose parts fail or hold strange text: what can be shown is shown, and what cannot is named."""

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
from lit_semantic_peft.reports import html, page_parts, plots
from lit_semantic_peft.reports.charts import CHARTS, describe_charts
from lit_semantic_peft.reports.charts.png import draw_figure
from lit_semantic_peft.reports.distances import compare_distances
from lit_semantic_peft.reports.html import build_report, render_report
from lit_semantic_peft.reports.records import Estimate, InterferenceRecord, RetentionRecord, Summary
from lit_semantic_peft.reports.run_folder import RunContents
from matplotlib.text import Text

pytestmark = pytest.mark.usefixtures("drawn_plots")

FORMULA = "price ($_{USD) in $"


def texts(figure):
    figure.canvas.draw()
    return {one.get_text() for one in figure.findobj(Text)}


def with_formulas(run_folder):
    run = run_folder.read()
    place = run.facts.column_names.index("relation")
    facts = run.facts.set_column(place, run.facts.schema.field(place), [[FORMULA] * len(run.facts)])
    return replace(run, facts=facts, summary=replace(run.summary, distance_name=FORMULA))


def test_a_dollar_in_a_name_is_a_dollar_in_every_plot(run_folder):
    run = with_formulas(run_folder)
    charts = describe_charts(run)
    assert FORMULA in texts(draw_figure([charts["heat_map"]]))
    assert FORMULA in texts(draw_figure([charts["distance_histogram"]]))
    names = {FORMULA: np.array([1.0, 2.0, 3.0]), r"\$": np.array([2.0, 1.0, 3.0])}
    compared = plots.plot_distances(compare_distances(names, ["a", "b", "c"]))
    assert {FORMULA, r"\$"} <= texts(compared)
    page = build_report(run_folder, run).read_text(encoding="utf-8")
    assert FORMULA in page
    assert "Left out of this report" not in page
    assert len(run_folder.paths.drawn_plots()) == len({entry.plot for entry in CHARTS})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_was_not_measured(run_folder, value):
    record = InterferenceRecord(0, 1, value, value, value, value)
    assert record == InterferenceRecord(0, 1)
    assert RetentionRecord(nll_before=value).nll_before is None
    assert Estimate.of([value, None]) is None
    assert Estimate.of([value, 0.5, 0.5]) == Estimate(0.5, 0.5, 0.5, 2)
    summary = Summary(1, 1, 0, interference=(record,), pushed_away=value)
    assert Summary.from_json(summary.to_json()) == summary
    page = render_report(RunContents(run_folder.facts.slice(0, 1), summary))
    assert "Pairs in conflict</span><strong>not measured" in page
    assert "Left out of this report" not in page


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("tiles", "numbers at the top"),
        ("summary_sentences", "what happened"),
        ("score_rows", "scores"),
        ("measure_side_effects", "side effects"),
        ("conflict_views", "worst conflicts"),
        ("probe_view", "neighbours"),
        ("provenance_rows", "provenance"),
        ("command_words", "command"),
        ("interference_moments", "interference in numbers"),
        ("heat_data", "heat map"),
        ("draw_svg", "drawing `loss_by_epoch`"),
    ],
)
def test_a_section_that_fails_is_left_out_with_its_reason(part, name, run_folder, monkeypatch, caplog):
    def fail(*arguments):
        raise ZeroDivisionError("<b>nothing\nthere</b>")

    monkeypatch.setattr(html if hasattr(html, part) else page_parts, part, fail)
    page = render_report(run_folder.read())
    assert f"<li>{name}: ZeroDivisionError: &lt;b&gt;nothing there&lt;/b&gt;</li>" in page
    assert page.count("</section>") == page.count("<section") == 7
    assert f"Left out of the report: {name}: ZeroDivisionError" in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_a_plot_that_fails_costs_no_other_plot(run_folder, monkeypatch):
    def fail_once(charts, draw=draw_figure):
        if charts[0].title == "Gradient cosine between facts":
            raise RuntimeError("no colours")
        return draw(charts)

    monkeypatch.setattr(plots, "draw_figure", fail_once)
    page = build_report(run_folder).read_text(encoding="utf-8")
    assert "<li>plot `interference`: RuntimeError: no colours</li>" in page
    assert {path.stem for path in run_folder.paths.drawn_plots()} == {entry.plot for entry in CHARTS} - {"interference"}


def test_a_chart_that_cannot_be_described_costs_no_other_chart(run_folder, monkeypatch):
    def fail(run):
        raise KeyError("distance")

    broken = [replace(entry, describe=fail) if entry.name == "heat_map" else entry for entry in CHARTS]
    monkeypatch.setattr("lit_semantic_peft.reports.charts.CHARTS", broken)
    page = build_report(run_folder).read_text(encoding="utf-8")
    assert "<li>chart `heat_map`: KeyError: &#39;distance&#39;</li>" in page
    assert "How far the facts were from the base model" in page
