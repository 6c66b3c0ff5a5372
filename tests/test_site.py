"""The site builds without a warning, and is read in a browser: links, search from a file, nothing from a network."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from fixtures.browser import BROWSER, NO_BROWSER, Page

ROOT = Path(__file__).resolve().parents[1]
NO_SPHINX = "Sphinx is not installed: make docs"

pytestmark = [pytest.mark.long, pytest.mark.skipif(find_spec("sphinx") is None, reason=NO_SPHINX)]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    offline = {name: value for name, value in os.environ.items() if name != "ONLINE"}
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", "docs", folder],
        cwd=ROOT,
        env=offline,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


class Anchors(HTMLParser):
    """The ids of a page, and what it links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of_tag = dict(attrs)
        self.ids |= {value for name in ("id", "name") if (value := of_tag.get(name))}
        self.targets |= {value for name in ("href", "src") if (value := of_tag.get(name))}


def dead_links(folder: Path) -> list[str]:
    """Links of pages in a folder that lead to no file, or to no place in a page."""
    pages = {path: Anchors(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}
    dead = []
    for path, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            leads_to = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            is_there = leads_to.is_file()
            if is_there and parts.fragment and leads_to in pages:
                is_there = unquote(parts.fragment) in pages[leads_to].ids
            if not is_there:
                dead.append(f"{path.relative_to(folder)}: {target}")
    return sorted(dead)


def test_no_link_within_the_site_is_dead(site):
    assert dead_links(site) == []


def test_a_dead_link_is_seen(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#there"></a><a href="b.html#not"></a><img src="c.png">')
    (tmp_path / "b.html").write_text('<p id="there">')
    assert dead_links(tmp_path) == ["a.html: b.html#not", "a.html: c.png"]


@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
@pytest.mark.parametrize(
    "name", ["index", "keys", "study", "api/semantics", "notebooks/03_reading_an_interference_matrix"]
)
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_page_asks_no_network_says_nothing_and_fits(site, tmp_path, name, width, dark):
    with Page(site / f"{name}.html", tmp_path / "profile", width=width, dark=dark, ready="true") as page:
        assert [one for one in page.problems if not one.startswith(("request: file:", "request: data:"))] == []
        assert page.run("document.documentElement.scrollWidth") <= width


@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
@pytest.mark.parametrize(
    ("name", "width", "arranged"),
    [
        ("evaluation", 390, {"stacked"}),
        ("evaluation", 1280, set()),
        ("recipe_results", 390, {"stacked"}),
        ("sweep", 390, {"scrolls"}),
        ("study_results", 390, {"stacked"}),
    ],
)
def test_a_table_that_does_not_fit_stacks_or_scrolls(site, tmp_path, name, width, arranged):
    tables = "[...document.querySelectorAll('.content table.docutils')]"
    is_wide = "(one) => one.scrollWidth > one.parentElement.clientWidth + 1"
    with Page(site / f"{name}.html", tmp_path / "profile", width=width, ready="true") as page:
        classes = {kind for kinds in page.run(f"{tables}.map((one) => [...one.classList])") for kind in kinds}
        assert classes & {"stacked", "scrolls"} == arranged
        assert page.run(f"{tables}.filter({is_wide}).every((one) => one.classList.contains('scrolls'))")


@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
def test_a_page_fits_windows_of_every_width(site, tmp_path):
    right = "document.querySelector('.content').getBoundingClientRect().right"
    with Page(site / "own_facts.html", tmp_path / "profile", ready="true") as page:
        for width in (320, 390, 900, 1073, 1120, 1201, 1220, 1280, 1320, 1601, 1920):
            page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
            page.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            assert page.run(right) <= width, width


@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
def test_a_long_table_of_marks_fits_a_phone_and_options_stay_whole(site, tmp_path):
    with Page(site / "sweep.html", tmp_path / "profile", width=390, ready="true") as page:
        table = "document.querySelector('.content table.docutils')"
        assert page.run(f"{table}.rows.length") > 100
        assert page.run(f"{table}.scrollWidth <= {table}.parentElement.clientWidth + 1")
        assert not page.run(f"{table}.classList.contains('stacked')")
    with Page(site / "recipe.html", tmp_path / "profile", width=390, ready="true") as page:
        options = "(one) => /^--[a-z_.]{3,24}$/.test(one.textContent)"
        words = f"[...document.querySelectorAll('.content p code .pre')].filter({options})"
        assert page.run(f"{words}.length") > 2
        assert page.run(f"{words}.filter((one) => one.getClientRects().length > 1).length") == 0


@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
def test_search_works_from_a_file(site, tmp_path):
    found = "document.querySelectorAll('#search-results li').length > 3"
    with Page(site / "search.html", tmp_path / "profile", ready=found, query="?q=interference") as page:
        assert not [one for one in page.problems if one.startswith(("exception", "error"))]
