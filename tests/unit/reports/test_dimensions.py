"""The picture at the top of the page."""

import re
from dataclasses import replace

from lit_semantic_peft.reports.charts.dimensions import dimensions_before_after
from lit_semantic_peft.reports.charts.svg import draw_svg
from lit_semantic_peft.reports.html import render_report
from lit_semantic_peft.reports.records import Estimate, RetentionRecord, ScoreRecord, Sides, Summary
from lit_semantic_peft.reports.run_folder import RunContents


def estimate(mean, num_facts=40):
    return Estimate(mean, mean, mean, num_facts)


def score(name, before, after):
    return ScoreRecord(name, kept=Sides(None if before is None else estimate(before), estimate(after)))


FULL = Summary(
    40,
    40,
    0,
    scores=(
        score("efficacy", 0.05, 0.9),
        score("generalization", 0.1, 0.6),
        score("generalization_question", 0.0, 0.7),
        score("generalization_reversed", 0.0, 0.2),
        score("locality", None, 0.8),
    ),
    retention=RetentionRecord(nll_before=3.0, nll_after=3.25, known=estimate(0.75, 64)),
)


def described(run_folder, summary):
    return dimensions_before_after(RunContents(run_folder.facts, summary))


def test_each_dimension_has_a_row_with_both_sides(run_folder):
    chart = described(run_folder, FULL)
    assert [(row.before, row.after, row.color) for row in chart.rows] == [
        (0.05, 0.9, "blue"),
        (0.1, 0.6, "blue"),
        (0.0, 0.7, "blue"),
        (0.0, 0.2, "blue"),
        (1.0, 0.8, "orange"),
        (1.0, 0.75, "orange"),
    ]
    assert chart.rows[-1].facts == "64 facts, not taught"
    assert "unrelated text: 3.00 nats per token before, 3.25 after" in chart.note


def test_what_was_not_measured_has_no_row(run_folder):
    chart = described(run_folder, replace(FULL, scores=FULL.scores[:1], retention=None))
    assert [row.label for row in chart.rows] == ["facts answered right"]
    assert "unrelated" not in chart.note
    assert not described(run_folder, Summary(40, 40, 0)).is_measured


def test_the_numbers_are_in_the_accessible_text(run_folder):
    (spoken,) = re.findall('aria-label="(.*?)"', str(draw_svg(described(run_folder, FULL))))
    assert "facts answered right, kept facts: 5 % before, 90 % after; " in spoken
    assert spoken.endswith("64 facts, not taught: 100 % before, 75 % after.")


def test_it_stands_under_the_verdict_and_above_the_tiles(run_folder):
    verdict = ("Little was learned.",)
    page = render_report(RunContents(run_folder.facts, replace(FULL, verdict=verdict)))
    places = [page.index(part) for part in ("What to look at", "What training gave and what it cost", 'class="tiles"')]
    assert places == sorted(places)
    assert "What training gave" not in render_report(RunContents(run_folder.facts, Summary(40, 40, 0)))
