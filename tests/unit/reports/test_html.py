import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation.scores import SCORES
from lit_semantic_peft.reports import page_data as page_data_module
from lit_semantic_peft.reports.charts import describe_charts
from lit_semantic_peft.reports.charts.interference import interference_history, worst_measurement
from lit_semantic_peft.reports.html import build_report, render_report
from lit_semantic_peft.reports.records import InterferenceRecord, Sides, Summary
from lit_semantic_peft.reports.run_folder import RunContents, RunFolder
from lit_semantic_peft.reports.sections import tiles
from lit_semantic_peft.reports.sentences import summary_sentences
from lit_semantic_peft.reports.summarize import summarize
from lit_semantic_peft.reports.tables import write_fact_table, write_interference
from lit_semantic_peft.reports.terminal import terminal_summary
from rich.console import Console

HOSTILE = "<script>alert(1)</script></script><!-- & \"quoted\" 'text' {{ 7 * 7 }}"


def page_data(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))


def test_the_report_is_written_beside_its_plots_and_the_same_twice(run_folder, drawn_plots):
    path = build_report(run_folder.path)
    assert path == run_folder.paths.report
    assert (run_folder.paths.plots / "recall.png").is_file()
    first = path.read_bytes()
    assert build_report(str(run_folder.path)).read_bytes() == first
    assert not list(run_folder.path.rglob(".*"))


def test_a_score_has_one_label_wherever_it_is_shown(run_folder):
    run = run_folder.read()
    label = {score.name: score.label for score in SCORES}
    charts = describe_charts(run)
    rows = charts["recall_before_after"].rows
    assert {row.label for row in rows} == {label["efficacy"], label["efficacy_teacher_forced"]}
    assert {row.facts for row in rows} == {"kept facts", "dropped facts"}
    assert charts["recall_by_epoch"].y_label == label["efficacy_teacher_forced"]
    shown = [tile["label"].lower() for tile in tiles(run.summary)]
    assert {label["efficacy"], f"{label['efficacy']}, dropped facts", label["locality"]} <= set(shown)
    assert page_data(render_report(run))["facts"]["labels"]["efficacy_after"].lower() == label["efficacy"]
    console = Console(width=120, file=io.StringIO())
    console.print(terminal_summary(run.summary))
    assert label["efficacy"] in console.file.getvalue()
    unmeasured = summary_sentences(replace(run.summary, scores=()), run.facts)
    assert f"Not measured: {label['efficacy']}." in unmeasured


def test_scores_of_dropped_facts_have_columns_where_facts_were_dropped(run_folder):
    run = run_folder.read()
    assert "Dropped facts, after</th>" in render_report(run)
    kept = tuple(replace(one, dropped=Sides()) for one in run.summary.scores)
    assert "Dropped facts, after</th>" not in render_report(replace(run, summary=replace(run.summary, scores=kept)))


def test_the_report_loads_nothing(run_folder):
    page = build_report(run_folder).read_text()
    tags = Tags()
    tags.feed(page)
    assert not [attrs for _, attrs in tags.seen if attrs.get("src") or attrs.get("srcset") or "background" in attrs]
    assert all(attrs["href"].startswith("#") for _, attrs in tags.seen if "href" in attrs)
    assert not {"link", "iframe", "object", "img"} & {tag for tag, _ in tags.seen}
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest", page)
    assert "default-src 'none'" in page


def test_fact_text_can_never_become_markup(tmp_path, write_run_folder):
    folder = write_run_folder(tmp_path / "run", first_prompt=HOSTILE)
    page = build_report(folder).read_text()
    assert "alert(1)</script>" not in page
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert page_data(page)["facts"]["values"]["prompt"][0] == HOSTILE
    assert "{{" not in page.replace("{{ 7 * 7 }}", "")


def test_hostile_text_everywhere_else_is_escaped_too(run_folder):
    summary = Summary(3, 2, 1, {HOSTILE: 1}, name=HOSTILE, base_model=HOSTILE, command=HOSTILE, distance_name=HOSTILE)
    page = render_report(RunContents(run_folder.facts, summary, matrix=run_folder.matrix, config=HOSTILE))
    assert page.count("<script") == 2
    assert "&lt;script&gt;alert(1)" in page


def test_ten_thousand_facts_stay_below_five_megabytes(tmp_path, write_run_folder):
    folder = write_run_folder(tmp_path / "run", 10_000, sampled=300)
    page = build_report(folder).read_text()
    assert len(page.encode()) < 5e6
    data = page_data(page)
    assert data["facts"]["n"] == 10_000
    assert len(data["heat"]["names"]) == 128


def test_the_history_of_interference_is_shown_before_anything_else_of_it(run_folder):
    page = build_report(run_folder).read_text()
    tags = Tags()
    tags.feed(page)
    sections = [attrs["id"] for tag, attrs in tags.seen if tag == "section"]
    assert sections == ["summary", "learned", "interference", "training", "facts", "neighbours", "provenance"]
    history = page.index("Interference over training</h3>")
    assert history < page.index("Gradient cosine between facts</h3>") < page.index("Worst conflicts</h3>")
    # Start, worst and end, from the records: 3 %, 21 % after epoch 4, 15 %.
    shown = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", page[history : page.index("Gradient cosine between facts</h3>")])
    assert shown[:7] == ["", "start (0)", "worst (4)", "end (7)", "pairs in conflict", "3\u00a0%", "21\u00a0%"]


def test_measurements_within_an_epoch_are_shown_over_steps(run_folder):
    records = [InterferenceRecord(epoch, step, rate) for epoch, step, rate in ((0, 0, 0.0), (0, 5, 0.2), (1, 10, 0.1))]

    def history(*measured):
        return interference_history(RunContents(run_folder.facts, Summary(1, 1, 0, interference=measured)))

    chart = history(*records)
    assert (chart.x, chart.x_label, worst_measurement(records)) == ((0, 5, 10), "optimizer steps", 1)
    assert [one.label for one in chart.series] == ["pairs in conflict"]
    assert history(records[0], records[2]).x == (0, 1)
    assert chart.is_measured
    assert not history().is_measured
    assert not history(records[0]).is_measured  # a dot is no line; its numbers stand in the table
    assert worst_measurement([]) is None


def test_a_single_measurement_is_none_of_the_start(run_folder):
    def note(*records):
        summary = replace(run_folder.summary, interference=records)
        page = render_report(RunContents(run_folder.facts, summary))
        return (
            re.search(r"Pairs in conflict.*?(at the end[^<]*)", page, re.DOTALL)[1]
            .strip()
            .replace("\N{NO-BREAK SPACE}", " ")
        )

    start, end = InterferenceRecord(0, 0, 0.25), InterferenceRecord(3, 6, 0.5)
    assert note(start, end) == "at the end; 25 % at the start, 50 % at worst"
    assert note(end) == "at the end"


def test_long_texts_are_cut_in_the_page_and_it_says_so(tmp_path, write_run_folder):
    facts = write_run_folder(tmp_path / "run", 5_000).facts
    long = ["word " * 400 + str(row) for row in range(len(facts))]
    position = facts.schema.get_field_index("prompt")
    facts = facts.set_column(position, facts.schema.field(position), [long])
    page = render_report(RunContents(facts, Summary(5000, 5000, 0)))
    assert len(page.encode()) < 5e6
    assert re.search(r"Texts longer than \d+ characters are cut", page)


def test_what_was_not_measured_is_called_so(run_folder, drawn_plots):
    for path in (run_folder.paths.probes, run_folder.paths.interference, run_folder.paths.config):
        path.unlink()
    run_folder.write_summary(Summary(96, 96, 0))
    page = build_report(run_folder).read_text()
    assert "not measured" in page
    assert "Neighbouring questions were not measured in this run." in page
    assert "by construction" not in page
    assert page_data(page)["heat"] is None


def test_recall_that_is_zero_by_construction_is_called_so(run_folder):
    page = build_report(run_folder).read_text()
    assert "is zero by construction" in page


@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_facts_are_no_error(tmp_path, drawn_plots, count):
    folder = RunFolder(tmp_path / "run")
    write_fact_table(folder.paths.facts, {"fact_id": ["a"][:count], "prompt": ["p"][:count], "target": ["t"][:count]})
    write_interference(folder.paths.interference, np.ones((count, count)), np.arange(count))
    folder.write_summary(summarize(folder.facts))
    assert page_data(build_report(folder).read_text())["facts"]["n"] == count


def test_without_the_facts_there_is_no_report(run_folder):
    run_folder.paths.facts.unlink()
    with pytest.raises(InputError, match=r"facts\.parquet"):
        build_report(run_folder)
    assert not run_folder.paths.report.exists()


def test_scores_and_side_effects_are_shown(run_folder):
    page = build_report(run_folder).read_text(encoding="utf-8")
    section = page[page.index('<section id="learned"') : page.index('<section id="interference"')]
    section = re.sub("</?span[^>]*>", "", section)
    for name in ("efficacy", "generalization", "locality_kl", "retention_nll_delta", "retention_known"):
        assert f"<code>{name}</code>" in section
    after = run_folder.summary.score("generalization").kept.after
    assert f"{round(100 * after.mean)} % ({round(100 * after.low)}–{round(100 * after.high)})" in section
    assert "0.060 (0.010 to 0.120)" in section
    assert "side effects exceed chance; the largest:" in section
    assert "Bold with a star:" in section
    assert "portability" not in section  # not measured


def test_a_tile_without_a_number_has_no_note(run_folder):
    run = run_folder.read()
    page = render_report(replace(run, summary=replace(run.summary, pushed_away=None)))
    assert re.search(r'<span class="label">Pushed away</span><strong>not.measured</strong>\s*</div>', page)
    assert "farther after training" in render_report(run)


def test_the_command_ends_its_lines_between_options(run_folder):
    run = run_folder.read()
    command = "lit-semantic-peft fit --data.facts 'my facts.jsonl' --trainer.max_steps=24 --recipe plain"
    summary = replace(run.summary, command=command, created="2026-11-30T13:08:26+00:00")
    page = render_report(replace(run, summary=summary))
    words = re.findall(r"<span>([^<]*)</span>", page[page.index("<dt>Command</dt>") : page.index("<dt>Ended</dt>")])
    assert words == [
        *("lit-semantic-peft fit", "--data.facts &#39;my facts.jsonl&#39;", "--trainer.max_steps=24", "--recipe plain")
    ]
    assert "2026-11-30 13:08:26 UTC" in page


def test_cards_keep_the_page_small_and_say_so(run_folder, monkeypatch):
    said = "Only the first facts' cards show their questions"
    run = run_folder.read()
    page = render_report(run)
    assert said not in page
    of = page_data(page)["probes"]["of"]
    assert sum(map(len, of.values())) == run.probes.num_rows
    monkeypatch.setattr(page_data_module, "_PROBE_BUDGET", 400)
    page = render_report(run)
    assert said in page
    assert 0 < sum(map(len, page_data(page)["probes"]["of"].values())) < 10
