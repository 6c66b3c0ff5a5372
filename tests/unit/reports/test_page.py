"""The page as a user has it: in a real browser, by keyboard and mouse; and its logic alone, where Node is there."""

import csv
import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest
from lit_semantic_peft.reports.compare import _without_formulas
from lit_semantic_peft.reports.html import build_report
from lit_semantic_peft.reports.page_data import fact_data, script_json
from lit_semantic_peft.reports.run_folder import RunFolder

from fixtures.browser import BROWSER, NO_BROWSER, Page

HOSTILE = "needle <script>alert(1)</script> <img src=x onerror=alert(2)>"
LOGIC = Path(__file__).resolve().parents[3] / "lit_semantic_peft" / "reports" / "logic.js.j2"
NODE = shutil.which("node")

ROWS = "[...document.querySelectorAll('#table tbody tr[data-place]')]"
COUNT = "document.getElementById('count').textContent"
READOUT = "document.getElementById('heat-readout').textContent"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_run_folder) -> RunFolder:
    folder = write_run_folder(tmp_path_factory.mktemp("run"), 2_000, first_prompt=HOSTILE)
    build_report(folder)
    return folder


def texts(page: Page, css: str) -> list[str]:
    return page.run(f"{ROWS}.map((row) => row.querySelector('{css}').textContent)")


@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (500, True)])
def test_the_page_works_by_keyboard_and_mouse(folder, tmp_path, width, dark):
    with Page(folder.paths.report, tmp_path / "profile", width=width, dark=dark) as page:
        assert page.run(COUNT) == "2000 facts"
        assert page.run(f"{ROWS}.length") < 100  # of 2000: only what is in sight
        assert page.run("document.documentElement.scrollWidth - innerWidth") <= 0

        # Search, from the keyboard alone; fact text stays text.
        page.press("/")
        page.type("NEEDLE alert")
        page.wait_for(f"{COUNT} === '1 of 2000 facts'")
        (found,) = texts(page, ".c-fact")
        assert found.startswith("needle <script>alert(1)</script>")
        assert page.run("document.querySelectorAll('#table script, #table img').length") == 0
        page.type(" nowhere")
        page.wait_for(f"{ROWS}.length === 0")
        page.run("document.getElementById('search').value = ''")
        page.press("x")
        page.run("document.getElementById('search').select()")
        page.type("river")
        page.wait_for(f"{COUNT} !== '2000 facts'")
        assert all("river" in text for text in texts(page, ".c-fact"))
        page.run("document.getElementById('search').value = ''; 0")
        page.run("document.getElementById('search').dispatchEvent(new Event('input', { bubbles: true }))")

        # Sort: the heading with Enter, far to near, then near to far.
        page.run("document.querySelector('#table th.c-distance button').focus()")
        page.press("Enter")
        page.wait_for("document.querySelector('#table th.c-distance').getAttribute('aria-sort') === 'descending'")
        down = [float(text) for text in texts(page, ".c-distance")]
        page.press("Enter")
        page.wait_for("document.querySelector('#table th.c-distance').getAttribute('aria-sort') === 'ascending'")
        up = [float(text) for text in texts(page, ".c-distance")]
        assert down == sorted(down, reverse=True)
        assert up == sorted(up)
        distances = folder.facts.column("distance").to_numpy()
        assert (down[0], up[0]) == (pytest.approx(distances.max(), abs=6e-3), pytest.approx(distances.min(), abs=6e-4))

        # Walk the table: down three, to the end, open the fact, close it; the focus is where it was.
        page.run(f"{ROWS}[0].querySelector('button').focus()")
        page.press("ArrowDown", 3)
        assert page.run("document.activeElement.closest('tr').dataset.place") == "3"
        page.press("End")
        page.wait_for("document.activeElement.closest('tr')?.dataset.place === '1999'")
        page.press("Enter")
        page.wait_for("document.getElementById('detail').open")
        assert page.run("document.querySelectorAll('#detail-rows dt').length") > 20
        assert not page.run("document.querySelector('#detail details').open")  # all columns are folded away
        assert page.run("document.querySelectorAll('#detail-answers tbody tr').length") > 1
        assert page.run("location.hash").startswith("#fact=")
        page.press("Escape")
        page.wait_for("!document.getElementById('detail').open")
        assert page.run("document.activeElement.closest('tr')?.dataset.place") == "1999"

        # The heat map: arrows move by one, the mouse points, Enter opens the fact of the row.
        page.run("document.getElementById('heat').focus()")
        before = page.run(READOUT)
        page.press("ArrowUp")
        page.wait_for(f"{READOUT} !== {json.dumps(before)}")
        before = page.run(READOUT)
        page.point("#heat", 0.95, 0.1)
        page.wait_for(f"{READOUT} !== {json.dumps(before)}")
        chosen = page.run("document.getElementById('heat-readout').childNodes[3].textContent")
        page.press("Enter")
        page.wait_for("document.getElementById('detail').open")
        assert page.run("document.getElementById('detail-title').textContent") == chosen
        page.press("Escape")

        # A conflict opens its fact.
        page.point(".conflicts [data-row]", click=True)
        page.wait_for("document.getElementById('detail').open")
        page.press("Escape")

        # A fact by its address.
        page.run(f"location.hash = '#fact=' + encodeURIComponent({json.dumps(folder.facts['fact_id'][3].as_py())})")
        page.wait_for("document.getElementById('detail').open")
        assert (
            page.run("document.getElementById('detail-title').textContent")
            == f"{folder.facts['prompt'][3]} {folder.facts['target'][3]}"
        )
        page.press("Escape")
        page.wait_for("location.hash === ''")

        # What is shown can be had as a file, without a look at the network.
        page.run("URL.createObjectURL = (blob) => { window.blob = blob; return 'about:blank'; }; 0")
        page.run("addEventListener('click', (e) => { if (e.target.download) { e.preventDefault(); } }, true); 0")
        page.run("HTMLAnchorElement.prototype.click = function () { window.file = this.download; }; 0")
        page.point("#download", click=True)
        page.wait_for("window.file !== undefined")
        assert page.run("window.file") == "synthetic-2000 facts.csv"
        assert len(list(csv.reader(io.StringIO(page.run("window.blob.text()"))))) == 2001

        # A view.
        page.run("document.getElementById('view').value = 'dropped'")
        page.run("document.getElementById('view').dispatchEvent(new Event('change'))")
        assert set(texts(page, ".c-status")) <= {"already known", "too far"}
        assert page.problems == []


@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_every_column_of_the_scores(tmp_path, write_run_folder, dark):
    page_file = build_report(write_run_folder(tmp_path / "run", 96))
    with Page(page_file, tmp_path / "profile", width=390, dark=dark) as page:
        assert page.run("document.documentElement.scrollWidth - innerWidth") <= 0
        cells = "[...document.querySelectorAll('.scores th, .scores td')]"
        assert page.run(f"{cells}.length") > 20
        card = "document.querySelector('.scores').closest('.card').getBoundingClientRect()"
        outside = f"{cells}.filter((cell) => cell.getBoundingClientRect().right > {card}.right).length"
        assert page.run(outside) == 0
        assert page.run(f"{cells}.filter((cell) => cell.scrollWidth > cell.clientWidth).length") == 0
        # So do the tables of texts: facts that resist, neighbours.
        boxes = "[...document.querySelectorAll('.scroll:has(.stacks)')]"
        assert page.run(f"{boxes}.length") == 3
        assert page.run(f"{boxes}.filter((box) => box.scrollWidth > box.clientWidth + 1).length") == 0
        labels = "[...document.querySelectorAll('#neighbours td')].slice(0, 5).map((td) => td.dataset.label ?? '')"
        assert page.run(labels) == ["", "Right answer", "Before", "After", "Answer"]
        # A cell without text is no label without a value.
        cell = "document.querySelectorAll('#neighbours td')[2]"
        assert page.run(f"{cell}.textContent = '', {cell}.getBoundingClientRect().height") == 0
        assert page.run("document.querySelectorAll('#neighbours td')[3].getBoundingClientRect().height") > 0
        # Each number stands under the heading of its column.
        lefts = "(row) => [...row.cells].slice(1).map((cell) => Math.round(cell.getBoundingClientRect().left))"
        rows = page.run(f"[...document.querySelectorAll('.scores tr')].map({lefts})")
        assert {tuple(row) for row in rows} == {tuple(rows[0])}
        assert page.problems == []


@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
def test_no_heading_of_the_table_of_facts_is_cut(tmp_path, write_run_folder):
    page_file = build_report(write_run_folder(tmp_path / "run", 24))
    with Page(page_file, tmp_path / "profile", width=1120) as page:
        headings = "[...document.querySelectorAll('#table th button')]"
        assert page.run(f"{headings}.length") >= 10
        cut = page.run(f"{headings}.filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.textContent)")
        assert cut == []


@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
def test_ten_thousand_facts_scroll(tmp_path, write_run_folder):
    folder = write_run_folder(tmp_path / "run", 10_000, sampled=300)
    with Page(build_report(folder), tmp_path / "profile") as page:
        page.run("document.getElementById('viewport').scrollTop = 1e9")
        page.wait_for(f"{ROWS}.at(-1)?.dataset.place === '9999'")
        assert page.run(f"{ROWS}.length") < 100
        start = page.run("performance.now()")
        page.run("document.querySelector('#table th.c-fact button').click()")
        page.press("/")
        page.type("founder")
        page.wait_for(f"{COUNT} !== '10000 facts'")
        assert page.run("performance.now()") - start < 5000
        assert page.problems == []


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", '=HYPERLINK("x","y")']


@pytest.mark.skipif(NODE is None, reason="no Node in the path")
def test_the_csv_holds_every_column_and_no_formula(tmp_path, write_run_folder):
    folder = write_run_folder(tmp_path / "run", 40)
    rows = folder.facts.to_pylist()
    for row, text in zip(rows, [*FORMULAS, 'a "quoted", text', "two\nlines", "x = 1"], strict=False):
        row["prompt"] = text
    facts = pa.Table.from_pylist(rows, folder.facts.schema)
    data = script_json({"facts": fact_data(facts), "heat": None, "probes": None})
    program = tmp_path / "csv.js"
    program.write_text(
        f"{LOGIC.read_text()}\nprocess.stdout.write(pageLogic({data}).csv([...Array(40).keys()].reverse()));"
    )
    done = subprocess.run([NODE, str(program)], capture_output=True, check=True)
    read = list(csv.DictReader(io.StringIO(done.stdout.decode(), newline="")))[::-1]
    assert list(read[0]) == list(fact_data(facts)["kinds"])
    pa_csv.write_csv(_without_formulas(facts.select(["prompt"])), tmp_path / "compared.csv")  # as `compare` does
    with (tmp_path / "compared.csv").open(newline="") as file:
        assert [one["prompt"] for one in read] == [one["prompt"] for one in csv.DictReader(file)]
    assert [one["prompt"][0] for one in read[: len(FORMULAS)]] == ["'"] * len(FORMULAS)
    for one, row in zip(read, rows, strict=True):
        assert one["worst_aggressor"] == (row["worst_aggressor"] or "")
        assert one["kept"] == str(row["kept"]).lower()
        assert float(one["nll_after"]) == pytest.approx(row["nll_after"], rel=1e-3)
        assert (one["net_transfer"] == "") == (row["net_transfer"] is None)


@pytest.mark.skipif(NODE is None, reason="no Node in the path")
def test_search_order_and_window_without_a_browser(folder, tmp_path):
    data = folder.paths.report.read_text().split('id="data">', 1)[1].split("</script>", 1)[0]
    program = tmp_path / "logic.js"
    program.write_text(
        LOGIC.read_text()
        + f"""
const page = pageLogic({data});
const ask = [
  {{ query: "needle" }}, {{ query: "CAPITAL  of" }}, {{ query: "capital river" }}, {{ view: "dropped" }},
  {{ view: "undone", key: "transfer" }}, {{ key: "distance", down: true }}, {{ key: "transfer" }},
];
const i = page.worstPair();
process.stdout.write(JSON.stringify({{
  found: ask.map(page.find), distances: page.find({{ key: "distance" }}).map(page.keys.distance),
  windows: [page.inSight(0, 500, 50, 2000, 5), page.inSight(99950, 500, 50, 2000, 5), page.inSight(0, 500, 50, 3, 5)],
  cards: [0, 1, 2, 3].map((row) => [page.questions(row), page.numbers(row), page.others(row)]),
  of: {{ relation: page.find({{ relation: page.cell("relation", 5) }}) }},
  rows: {{ row: page.rowOf(page.cell("fact_id", 7)), none: page.rowOf("no") }},
  numbers: [null, 3, -1.5, 0.12345, 1234.5].map(page.number), worst: i && page.cosine(...i),
}}));
"""
    )
    done = subprocess.run([NODE, str(program)], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    facts = folder.facts.to_pylist()
    needle, capital, both, dropped, undone, far_first, transfer = result["found"]
    assert needle == [0]
    assert capital == [row for row, fact in enumerate(facts) if "capital of" in fact["prompt"]]
    assert both == []
    assert dropped == [row for row, fact in enumerate(facts) if not fact["kept"]]
    below = [row for row, fact in enumerate(facts) if fact["net_transfer"] is not None and fact["net_transfer"] < -1]
    assert sorted(undone) == below
    assert undone == sorted(undone, key=lambda row: facts[row]["net_transfer"])
    assert far_first[0] == int(np.argmax([fact["distance"] for fact in facts]))
    measured = sum(fact["net_transfer"] is not None for fact in facts)
    assert all(facts[row]["net_transfer"] is not None for row in transfer[:measured])
    assert transfer[measured:] == sorted(transfer[measured:])  # not measured: last, in their old order
    assert result["distances"] == sorted(result["distances"])
    assert result["windows"] == [[0, 20], [1994, 2000], [0, 3]]
    assert result["numbers"] == ["–", "3", "−1.50", "0.123", "1235"]
    assert result["rows"]["row"] == 7
    assert result["rows"]["none"] is None
    same = facts[5]["relation"]
    assert result["of"]["relation"] == [row for row, fact in enumerate(facts) if fact["relation"] == same]
    probes = folder.probes.to_pylist()
    row_of = {fact["fact_id"]: row for row, fact in enumerate(facts)}
    for row, (questions, numbers, others) in enumerate(result["cards"]):
        fact, asked = facts[row], [one for one in probes if one["fact_id"] == facts[row]["fact_id"]]
        assert [one["prompt"] for one in questions] == [fact["prompt"], *(one["prompt"] for one in asked)]
        assert questions[0]["kind"] == "taught"
        assert [(one["after"], one["isBad"]) for one in questions[1:]] == [
            (one["answer_after"], one["unchanged"] is False) for one in asked
        ]
        assert "Loss of the answer, nats per token" in dict(numbers)
        hurt_by = dict(others).get("Hurt most by", [])
        assert hurt_by == ([] if fact["worst_aggressor"] is None else [row_of[fact["worst_aggressor"]]])
        for other in dict(others).get("Hurts most", []):
            assert facts[other]["worst_aggressor"] == fact["fact_id"]
    cosine = folder.matrix.gradient_cosine()
    assert result["worst"].startswith("cosine −")
    assert float(result["worst"].split("−")[1]) <= -cosine.min() + 0.006
