"""Passages that no fact has to do with, of five kinds, read from packages that are installed: none is shipped here.

The package `gensim` carries Wikipedia articles, news and reviews as its test data (`pip install --no-deps gensim`; it
is read, never imported). Documentation comes from Python itself, licence text from gensim.
"""

import bz2
import html
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Literal

from lit_semantic_peft.errors import InputError

Role = Literal["choose", "report"]

_WORDS = 60
_NUM_OF_KIND = {"encyclopedia": 45, "news": 30, "documentation": 25, "review": 8, "licence": 12}

_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}|\{\|[^{}]*\|\}", re.DOTALL)
_REFERENCE = re.compile(r"<ref[^>/]*/>|<ref.*?</ref>|<!--.*?-->", re.DOTALL)
_FILE_LINK = re.compile(r"\[\[(?:File|Image|Category):[^\[\]]*(?:\[\[[^\]]*\]\][^\[\]]*)*\]\]")
_LINK = re.compile(r"\[\[(?:[^|\]]*\|)?([^\]]*)\]\]")
_MARKUP = re.compile(r"'''?|\[https?://\S+ ?|\]|<[^>]+>")


def passages(role: Role) -> list[tuple[str, str]]:
    """Passages of at most 60 words; those that choose are other ones than those that are reported.

    Args:
        role: `report` gives 120 of five kinds, `choose` about 35 others.

    Returns:
        Pairs of kind and text.

    Raises:
        InputError: If `gensim` is not installed, or holds less than expected.
    """
    data = _test_data()
    of_kind = {
        "encyclopedia": list(_articles(data)),
        "news": (data / "lee_background.cor").read_text(encoding="utf-8").splitlines(),
        "documentation": list(_docstrings()),
        "review": [line.partition(" ")[2] for line in _lines(data / "alldata-id-10.txt")],
        "licence": _licence(),
    }
    found = []
    for kind, texts in of_kind.items():
        number = _NUM_OF_KIND[kind]
        chosen = texts[:number] if role == "report" else texts[number : number + number // 3]
        if role == "report" and len(chosen) < number:
            raise InputError(f"{len(chosen)} passages of the kind {kind}; expected {number}.")
        found += [(kind, " ".join(text.split()[:_WORDS])) for text in chosen]
    return found


def _test_data() -> Path:
    spec = importlib.util.find_spec("gensim")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("The passages are read from the package gensim: `pip install --no-deps gensim`.")
    return Path(spec.submodule_search_locations[0]) / "test" / "test_data"


def _articles(data: Path) -> Iterator[str]:
    """The second paragraph of each Wikipedia article that has one of 60 words."""
    path = next(data.glob("enwiki-latest-pages-articles1*.bz2"))
    dump = bz2.decompress(path.read_bytes()).decode("utf-8")
    for page in re.finditer(r"<page>.*?<title>(.*?)</title>.*?<text[^>]*>(.*?)</text>", dump, re.DOTALL):
        title, source = page.groups()
        if ":" in title or source.startswith("#REDIRECT"):
            continue
        lines = [line.strip() for line in _plain(source).split("\n")]
        paragraphs = [line for line in lines if line[:1].isalpha() and len(line.split()) >= _WORDS]
        if len(paragraphs) > 1:
            yield paragraphs[1]


def _plain(source: str) -> str:
    """Wiki markup as plain text, roughly."""
    text = html.unescape(source)
    while (inner := _TEMPLATE.sub("", text)) != text:
        text = inner
    text = _FILE_LINK.sub("", _REFERENCE.sub("", text))
    return _MARKUP.sub("", _LINK.sub(r"\1", text))


def _docstrings() -> Iterator[str]:
    """Long docstrings of the standard library, one a module, in the order of names."""
    for name in sorted(one.name for one in pkgutil.iter_modules() if one.name in sys.stdlib_module_names):
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            continue
        source = Path(spec.origin).read_text(encoding="utf-8", errors="ignore")
        found = re.search(r'"""(.*?)"""', source, re.DOTALL)
        text = inspect.cleandoc(found[1]) if found else ""
        if len(text.split()) >= _WORDS and text.isascii():
            yield text


def _licence() -> list[str]:
    """The licence of gensim, cut into pieces of 60 words."""
    path = next(one for one in distribution("gensim").files or () if one.name == "COPYING")
    words = path.read_text(encoding="utf-8").split()
    return [" ".join(words[start : start + _WORDS]) for start in range(0, len(words) - _WORDS, _WORDS)]


def _lines(path: Path) -> list[str]:
    """The lines that can be read: this file holds bytes of other kinds as well."""
    raw = path.read_bytes().split(b"\n")
    return [line.decode("utf-8") for line in raw if line.isascii() and len(line.split()) >= _WORDS]
