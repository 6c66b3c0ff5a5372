import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.reports.html import build_report, render_report
from lit_semantic_peft.reports.run_folder import RunFolder
from lit_semantic_peft.reports.summary import Summary, summarize
from lit_semantic_peft.reports.tables import write_fact_table, write_interference

HOSTILE = "<script>alert(1)</script></script><!-- & \"quoted\" 'text' {{ 7 * 7 }}"


def page_data(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))


def test_the_report_is_written_beside_its_plots_and_the_same_twice(run_folder):
    path = build_report(run_folder.path)
    assert path == run_folder.report
    assert (run_folder.plots / "recall.png").is_file()
    first = path.read_bytes()
    assert build_report(str(run_folder.path)).read_bytes() == first
    assert not list(run_folder.path.rglob(".*"))


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
    page = render_report(run_folder.read_facts(), summary, config=HOSTILE, matrix=run_folder.read_interference())
    assert page.count("<script") == 2
    assert "&lt;script&gt;alert(1)" in page


def test_ten_thousand_facts_stay_below_five_megabytes(tmp_path, write_run_folder):
    folder = write_run_folder(tmp_path / "run", 10_000, sampled=300)
    page = build_report(folder).read_text()
    assert len(page.encode()) < 5e6
    data = page_data(page)
    assert data["facts"]["n"] == 10_000
    assert len(data["heat"]["names"]) == 128


def test_long_texts_are_cut_in_the_page_and_it_says_so(tmp_path, write_run_folder):
    facts = write_run_folder(tmp_path / "run", 5_000).read_facts()
    long = ["word " * 400 + str(row) for row in range(len(facts))]
    position = facts.schema.get_field_index("prompt")
    page = render_report(facts.set_column(position, facts.schema.field(position), [long]), Summary(5000, 5000, 0))
    assert len(page.encode()) < 5e6
    assert re.search(r"Texts longer than \d+ characters are cut", page)


def test_what_was_not_measured_is_called_so(run_folder):
    for path in (run_folder.probes, run_folder.interference, run_folder.config):
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
def test_hardly_any_facts_are_no_error(tmp_path, count):
    folder = RunFolder(tmp_path / "run")
    write_fact_table(folder.facts, {"fact_id": ["a"][:count], "prompt": ["p"][:count], "target": ["t"][:count]})
    write_interference(folder.interference, np.ones((count, count)), np.arange(count))
    folder.write_summary(summarize(folder.read_facts()))
    assert page_data(build_report(folder).read_text())["facts"]["n"] == count


def test_without_the_facts_there_is_no_report(run_folder):
    run_folder.facts.unlink()
    with pytest.raises(InputError, match=r"facts\.parquet"):
        build_report(run_folder)
    assert not run_folder.report.exists()


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

COLLECT_ERRORS = "<script>window.problems = []; addEventListener('error', (e) => problems.push(e.message));</script>"
DRIVE = """<script>
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const rows = () => [...document.querySelectorAll('#table tbody tr[data-place]')];
const texts = (css) => rows().map((row) => row.querySelector(css)?.textContent);
addEventListener('load', async () => {
  const result = {};
  const search = document.getElementById('search');
  const type = (text) => { search.value = text; search.dispatchEvent(new Event('input', { bubbles: true })); };
  result.all = document.getElementById('count').textContent;
  result.drawn = rows().length;
  type('NEEDLE'); result.found = texts('.c-fact'); result.foundCount = document.getElementById('count').textContent;
  result.alerts = document.querySelectorAll('#table script').length;
  type('no such words anywhere'); result.none = rows().length;
  type('');
  const header = [...document.querySelectorAll('#table th')].find((th) => th.textContent === 'Distance');
  header.querySelector('button').click();
  result.sort1 = header.getAttribute('aria-sort'); result.down = texts('.c-distance').map(Number);
  header.querySelector('button').click();
  result.sort2 = header.getAttribute('aria-sort'); result.up = texts('.c-distance').map(Number);
  const view = document.getElementById('view');
  view.value = 'dropped'; view.dispatchEvent(new Event('change')); result.fates = [...new Set(texts('.c-fate'))];
  view.value = 'all'; view.dispatchEvent(new Event('change'));
  rows()[0].querySelector('button').click();
  result.dialog = document.getElementById('detail').open;
  result.terms = document.querySelectorAll('#detail-rows dt').length;
  document.getElementById('detail').close();
  const viewport = document.getElementById('viewport');
  viewport.scrollTop = viewport.scrollHeight;
  viewport.dispatchEvent(new Event('scroll')); await wait(300);
  result.last = Math.max(...rows().map((row) => Number(row.dataset.place)));
  const heat = document.getElementById('heat');
  const before = document.getElementById('heat-readout').textContent;
  heat.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowUp', bubbles: true }));
  result.moved = document.getElementById('heat-readout').textContent !== before;
  result.overflow = document.documentElement.scrollWidth - innerWidth;
  result.problems = problems;
  document.body.innerHTML = '<pre id="result"></pre>';
  document.getElementById('result').textContent = JSON.stringify(result);
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium in the path")
@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_works_in_a_browser(tmp_path, write_run_folder, width):
    folder = write_run_folder(tmp_path / "run", 2_000, first_prompt=f"needle {HOSTILE}")
    page = build_report(folder).read_text()
    driven = tmp_path / "driven.html"
    driven.write_text(page.replace("<head>", f"<head>{COLLECT_ERRORS}", 1).replace("</body>", f"{DRIVE}</body>"))
    done = _browse(driven, tmp_path / "profile", width)
    result = json.loads(_unescape(re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)[1]))

    assert result["problems"] == []
    assert "CONSOLE" not in done.stderr, done.stderr
    assert result["all"] == "2000 facts"
    assert result["drawn"] < 100  # of 2000: only what is in sight
    assert len(result["found"]) == 1
    assert result["found"][0].startswith("needle <script>alert(1)</script>")
    assert result["foundCount"] == "1 of 2000 facts"
    assert result["alerts"] == 0
    assert result["none"] == 0
    assert result["sort1"] == "descending"
    assert result["down"] == sorted(result["down"], reverse=True)
    assert result["sort2"] == "ascending"
    assert result["up"] == sorted(result["up"])
    assert result["up"][0] < result["down"][0]
    assert set(result["fates"]) <= {"already known", "too far"}
    assert result["dialog"] is True
    assert result["terms"] > 20
    assert result["last"] == 1999
    assert result["moved"] is True
    assert result["overflow"] <= 0


def _browse(page: Path, profile: Path, width: int) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    options = [
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
        *("--enable-logging=stderr", f"--user-data-dir={profile}", f"--window-size={width},1200"),
        *("--virtual-time-budget=8000", "--dump-dom", page.as_uri()),
    ]
    return subprocess.run([BROWSER, *options], capture_output=True, text=True, timeout=120, check=True)


def _unescape(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
