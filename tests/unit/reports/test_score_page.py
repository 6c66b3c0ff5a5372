"""The page of `score`: facts before any training, and nothing that only a training could measure."""

import json
import re
from dataclasses import replace

import pytest
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import write_json
from lit_semantic_peft.reports.html import build_report, render_report
from lit_semantic_peft.reports.run_folder import RunFolder, RunPaths
from lit_semantic_peft.reports.score_records import (
    ContradictionRecord,
    Distances,
    Doubtful,
    DoubtfulRecord,
    DuplicatesRecord,
    FilterRecord,
    Findings,
    PredictionRecord,
)
from lit_semantic_peft.reports.score_view import MOST_ROWS
from lit_semantic_peft.reports.summarize import summarize
from lit_semantic_peft.reports.tables import write_fact_table

from fixtures.browser import BROWSER, NO_BROWSER, Page

HOSTILE = "</script><script>alert(1)</script>"
NUM = 12
FILTERS = (FilterRecord("KnownFilter", NUM, {"already_known": 2}), FilterRecord("BandFilter", NUM - 2, {"too_far": 3}))
FINDINGS = Findings(
    num_known=2,
    filters=FILTERS,
    contradictions=(ContradictionRecord("The river of 1 is", ("Elbe", "Oder"), ("f1", "f2"), ("a.jsonl:2", "")),),
    near_duplicates=(DuplicatesRecord("The river of … is", tuple(f"f{number}" for number in range(5))),),
    without_templates={"river": 11, "": 1},
)
DOUBTFUL = Doubtful((DoubtfulRecord("f3", "The river of 3 is", "Elbe", HOSTILE, 0.93, 0.0002, "a.jsonl:4"),))
DISTANCES = Distances(
    ("Near", "Far"),
    ((1.0, -0.25), (-0.25, 1.0)),
    {"efficacy": {"Near": PredictionRecord(0.75, 0.5, 0.875, 7, 3), "Far": PredictionRecord(0.5, 0.25, 0.75, 7, 3)}},
)


@pytest.fixture
def write_score(tmp_path):
    def write(findings=FINDINGS, doubtful=DOUBTFUL, distances=DISTANCES):
        folder = RunFolder(tmp_path / "scores")
        kept = [number >= 5 for number in range(NUM)]
        reason = ["already_known"] * 2 + ["too_far"] * 3 + [None] * (NUM - 5)
        columns = {
            "fact_id": [f"f{number}" for number in range(NUM)],
            "prompt": [f"The river of {number} is" for number in range(NUM)],
            "target": ["Elbe"] * NUM,
            "split": ["inject"] * NUM,
            "relation": ["river"] * NUM,
            "kept": kept,
            "drop_reason": reason,
            "distance": [number / 10 for number in range(NUM)],
            "distance_Near": [number / 10 for number in range(NUM)],
            "distance_Far": [1 - number / 10 for number in range(NUM)],
            "answer_before": ["the"] * 5 + [f"{HOSTILE} {number}" for number in range(NUM - 5)],
        }
        facts = write_fact_table(folder.paths.facts, columns)
        folder.write_summary(summarize(facts, name="scores", base_model="tiny", distance_name="Near"))
        for path, record, entry in (
            (folder.paths.findings, findings, RunPaths.findings),
            (folder.paths.doubtful, doubtful, RunPaths.doubtful),
            (folder.paths.distances, distances, RunPaths.distances),
        ):
            write_json(path, record.to_json(), entry.kind)
        return folder

    return write


def text_of(page):
    """What a reader sees above the table of facts."""
    body = page.split("<main>")[1].split('<section id="facts"')[0]
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def test_it_says_what_was_found_and_nothing_that_was_not_measured(write_score):
    folder = write_score()
    page = build_report(folder).read_text(encoding="utf-8")
    assert re.findall(r'<section id="(\w+)"', page) == [
        *("summary", "doubtful", "repeated", "filters", "distances", "facts", "provenance")
    ]
    said = text_of(page)
    assert "not measured" not in said
    assert 'class="empty"' not in page.split("<noscript>")[0]
    # What to look at, with what helps against it; KnownFilter is there already.
    assert "1 fact has the prompt of another fact and a different target. fit refuses such a file" in said
    assert "1 fact contradicts an answer of which the base model is sure" in said
    assert "4 facts nearly repeat another one. RedundancyFilter in data.selection.filters" in said
    assert "The base model gives 2" not in said
    assert "most frequent answer is “the”, to 5 of 12 facts" in said
    assert "Near: the middle fact is at 0.55, half of them lie between 0.275 and 0.825." in said
    assert "only the forms in the file: river (11), no relation (1)." in said
    assert "--warmup_steps 20" in said
    # The tables.
    assert "The river of 3 is Elbe &lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt; 0.93 0.0002 a.jsonl:4" in said
    assert "The river of 1 is Elbe a.jsonl:2 Oder" in said
    assert "The river of … is 5 The river of 0 is Elbe The river of 1 is Elbe The river of 2 is Elbe and 2 more" in said
    assert "KnownFilter 12 2 10 already known BandFilter 10 3 7 too far" in said
    assert "Near and Far −0.25" in said
    assert "Near 0.000 0.110 0.275 0.550 0.825 0.990 1.100" in said
    assert "Near 0.75 (0.50 to 0.88)" in said
    extremes = [f"The river of {number} is" for number in (0, 1, 2, 3, 4, 7, 8, 9, 10, 11)]
    shown = page.split("Nearest and farthest")[1].split("</table>")[0]
    assert [one for one in re.findall(r"The river of \d+ is", shown) if one] == extremes
    assert page.count("<script") == 2
    assert (folder.paths.plots / "distance_histogram.png").is_file()


def test_the_same_folder_gives_the_same_page_and_a_part_of_one_is_refused(write_score):
    folder = write_score()
    first = build_report(folder).read_bytes()
    assert build_report(folder.path).read_bytes() == first
    folder.paths.doubtful.unlink()
    with pytest.raises(InputError, match=r"doubtful\.json` is missing"):
        build_report(folder)
    write_json(folder.paths.doubtful, {"facts": [{"prompt": 1}]}, RunPaths.doubtful.kind)
    with pytest.raises(InputError, match=r"facts\[0\]\.prompt`: expected str, got 1"):
        build_report(folder)


def test_what_was_not_found_has_no_section(write_score):
    bare = Findings(num_known=0, filters=(FilterRecord("NoFilter", NUM),))
    run = write_score(bare, Doubtful(), Distances(("Near",), ((1.0,),))).read()
    page = render_report(run)
    assert re.findall(r'<section id="(\w+)"', page) == ["summary", "filters", "distances", "facts", "provenance"]
    assert "Nothing suspicious was found" in page
    assert "No filter is configured" in page
    assert "How the distances agree" not in page
    assert "ROC" not in page


def test_a_known_fact_without_its_filter_and_a_long_list(write_score):
    run = write_score().read()
    many = tuple(replace(DOUBTFUL.facts[0], probability=0.9) for _ in range(MOST_ROWS + 1))
    findings = replace(FINDINGS, filters=(FilterRecord("RandomFilter", NUM),))
    page = render_report(replace(run, score=replace(run.score, findings=findings, doubtful=many)))
    assert "The base model gives 2 facts already. KnownFilter" in text_of(page)
    assert f"The surest {MOST_ROWS} of {MOST_ROWS + 1} are shown" in page
    assert page.split('id="doubtful"')[1].split("</section>")[0].count("<tr>") == MOST_ROWS + 1  # and the heading


def test_conflicts_are_there_where_they_were_measured(write_score, run_folder):
    run = write_score().read()
    assert "hurt whom" not in render_report(run)
    measured = replace(run.score, findings=replace(run.score.findings, conflict_steps=20))
    with_conflicts = replace(run_folder.read(), score=replace(measured, doubtful=(), findings=replace(
        measured.findings, contradictions=(), near_duplicates=())), probes=None)  # fmt: skip
    with_conflicts = replace(with_conflicts, score=replace(with_conflicts.score, distances=Distances(())))
    page = render_report(with_conflicts)
    assert "After 20 steps of a throw-away adapter" in page
    assert "Worst conflicts" in page
    assert '<option value="undone">' in page


def test_choices_of_the_table_are_those_that_were_measured(write_score, run_folder):
    def choices(page):
        return re.findall(r'<option value="(\w+)">', page)

    assert choices(render_report(write_score().read())) == ["all", "kept", "dropped"]
    assert "forgotten" in choices(render_report(run_folder.read()))


@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
@pytest.mark.parametrize(("width", "dark"), [(1280, True), (390, False)])
def test_the_page_fits_and_its_facts_open(write_score, tmp_path, width, dark):
    page_file = build_report(write_score())
    with Page(page_file, tmp_path / "profile", width=width, dark=dark) as page:
        assert page.run("document.documentElement.scrollWidth - innerWidth") <= 0
        boxes = "[...document.querySelectorAll('.scroll, .scroll-x')]"
        assert page.run(f"{boxes}.filter((box) => box.scrollWidth > box.clientWidth + 1).length") == 0
        heads = page.run("[...document.querySelectorAll('#table th')].map((th) => th.textContent)")
        assert "Base model answers" in heads
        assert "Answer after" not in heads
        page.point("#doubtful button[data-row]", click=True)
        page.wait_for("document.getElementById('detail').open")
        assert page.run("document.getElementById('detail-title').textContent") == "The river of 3 is Elbe"
        cells = page.run("[...document.querySelectorAll('#detail-answers td')].map((td) => td.textContent)")
        assert cells == ["its own promptThe river of 3 is", "Elbe", "the"]
        assert page.problems == []


def test_the_findings_are_read_as_they_were_written(write_score):
    folder = write_score()
    assert folder.read().score.findings == FINDINGS
    assert json.loads(folder.paths.findings.read_text())["filters"][1]["dropped"] == {"too_far": 3}
